"""Runs in processes of their own, forked from one that has imported what all of them need."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
from etils import epath

from tests.helpers.configs import TINY_NETWORK
from tests.helpers.devices import for_devices
from tim_jax.training import checksums

SMALL = {
    **TINY_NETWORK,
    "data.batch_size": "16", "optimizer.warmup_steps": "0", "training.sample_steps": "1", "training.sample_every": "0",
    "training.log_every": "1", "checkpoint.every": "1000",
}  # fmt: skip

# Every run is a process of its own, forked from one that has imported what all of them need.
FORKS = multiprocessing.get_context("forkserver")
ROOMS = ("input_pipeline", "measuring", "teachers", "training")  # which tim_jax.train imports when its line is read
FORKS.set_forkserver_preload([f"tim_jax.runs.{room}" for room in ROOMS])


def entry(log, arguments, change):
    """What the process of a run does: its output goes to `log`; change: a function of this module called first."""
    os.setpgrp()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which is ignored where the tests were started by nohup
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
    from tim_jax import train

    if change is not None:
        change()
    train.main(arguments)


STARTED = []  # runs of the present test


class Run:
    """`python -m tim_jax.train` on a tiny network in `root`/run, in a process of its own."""

    def __init__(self, root, change=None, piped=False, **settings):
        self.workdir, self.log = root / "run", root / f"{time.monotonic_ns()}.txt"
        output = self.log
        if piped:  # as in python -m tim_jax.train … 2>&1 | tee LOG
            output = root / "pipe"
            os.mkfifo(output)
            self.reader = subprocess.Popen(["bash", "-c", 'exec tee "$0" <"$1" >/dev/null', str(self.log), str(output)])
        values = SMALL | {"loader.directory": root / "data"}
        values |= {name.replace("__", "."): value for name, value in settings.items()}
        flags = [f"--config.{name}={value}" for name, value in values.items()]
        arguments = ["--config=digits", f"--workdir={self.workdir}", *flags]
        self.process = FORKS.Process(target=entry, args=(str(output), arguments, change))
        self.process.start()
        STARTED.append(self)

    def kill(self):
        """Kills what is still there of the process and of those that it has started."""
        if self.process.is_alive():
            with contextlib.suppress(ProcessLookupError):  # until it leads a group, there is none
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
            self.process.join()

    def said(self):
        return self.log.read_text() if self.log.exists() else ""

    def wait_for(self, happened, seconds=240):
        end = time.monotonic() + seconds
        while not happened():
            assert self.process.is_alive(), self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.005)

    def step(self):
        """The last step in metrics.jsonl, or 0."""
        path = self.workdir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return json.loads(lines[-1])["step"] if lines else 0

    def signal(self, number):
        os.kill(self.process.pid, number)

    def end(self, seconds=240):
        """(exit code, last line)."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, self.said()
        return self.process.exitcode, self.said().strip().splitlines()[-1]

    def steps_saved(self):
        folder = self.workdir / "checkpoints"
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """What runs inherit when the process they are forked from starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", for_devices(1))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


@pytest.fixture(autouse=True)
def ends_its_runs():
    """No run outlives its test, which may fail while it waits for one."""
    yield
    while STARTED:
        STARTED.pop().kill()


@contextlib.contextmanager
def ended_at_last(processes):
    """A context at whose end processes that lead a session are killed with all that they have started."""
    try:
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def good(run, step):
    folder = epath.Path(run.workdir / "checkpoints" / str(step))
    return checksums.has_manifest(folder) and checksums.damage(folder) is None


def quickly(log, what, *arguments):
    """What a process does that needs no run."""
    sys.stderr = open(log, "w", buffering=1)
    what(*arguments)


def ended(tmp_path, what, *signals):
    """(exit code, said) of a process that does `what`, with signals sent once it has said that it is ready."""
    log = tmp_path / f"{time.monotonic_ns()}.txt"
    process = FORKS.Process(target=quickly, args=(str(log), what))
    process.start()
    end = time.monotonic() + 120
    for number in signals:
        while not (log.exists() and "ready" in log.read_text()) and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(process.pid, number)
        time.sleep(0.5)
    process.join(120)
    return process.exitcode, log.read_text()
