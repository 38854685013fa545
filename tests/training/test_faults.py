"""Real runs in processes of their own: asked to stop, hung, out of disk, fed with NaN, two in one workdir, killed."""

import argparse
import datetime
import hashlib
import json
import multiprocessing
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

from tests.helpers.configs import TINY_NETWORK
from tests.helpers.devices import for_devices
from tim_jax.bench import faults as bench
from tim_jax.system import lock
from tim_jax.training import checkpoints, checksums
from tim_jax.training.preemption import Stop
from tim_jax.training.watchdog import Watchdog

SMALL = {
    **TINY_NETWORK,
    "data.batch_size": "16", "optimizer.warmup_steps": "0", "training.sample_steps": "1", "training.sample_every": "0",
    "training.log_every": "1", "checkpoint.every": "1000",
}  # fmt: skip

# Every run is a process of its own, forked from one that has imported what all of them need.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tim_jax.train"])


def entry(log, arguments, change):
    """What the process of a run does: its output goes to `log`; change: a function of this module called first."""
    os.setpgrp()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
    from tim_jax import train

    if change is not None:
        change()
    train.main(arguments)


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


@pytest.fixture(scope="module")
def finished(one_device, tmp_path_factory):
    """The workdir of a run of four steps, with checkpoints of the second and of the fourth."""
    run = Run(tmp_path_factory.mktemp("finished"), training__steps=4, checkpoint__every=2)
    assert run.end()[0] == 0 and run.steps_saved() == [2, 4]
    return run.workdir


def good(run, step):
    folder = epath.Path(run.workdir / "checkpoints" / str(step))
    return checksums.has_manifest(folder) and checksums.damage(folder) is None


@pytest.mark.slow
def test_asked_to_stop_while_it_trains_a_run_saves_its_step_and_another_cannot_disturb_it(tmp_path):
    run = Run(tmp_path, training__steps=10**6)
    run.wait_for(lambda: run.step() >= 3)
    before = {path: path.read_bytes() for path in run.workdir.iterdir() if path.name in ("config.json", "starts.jsonl")}
    second = Run(tmp_path, training__steps=10**6)
    code, line = second.end()
    assert code == 2 and line.startswith("error: --workdir=") and f"process {run.process.pid} on" in line
    assert {path: path.read_bytes() for path in before} == before
    at = run.step()
    run.signal(signal.SIGTERM)
    code, line = run.end(60)
    (step,) = run.steps_saved()
    assert code == 75 and step >= at and good(run, step)
    assert line.startswith(f"stopped by SIGTERM at step {step}, which is saved: start it again") and "goodput" in line
    assert run.step() <= step
    # Started again, it goes on from the step that was saved; its account of time spans both starts.
    again = Run(tmp_path, training__steps=step + 2)
    code, line = again.end()
    assert code == 0 and line.startswith(f"trained to step {step + 2}")
    lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, step + 3)), "no step is made twice or left out"
    starts = [json.loads(line) for line in (run.workdir / "starts.jsonl").read_text().splitlines()]
    assert len(starts) == 2, "the run that was refused is no start"
    manager = checkpoints.open_manager(epath.Path(run.workdir), 2, 1, read_only=True)
    seconds = [checkpoints.read_record(manager, saved)["productive_seconds"] for saved in (step, step + 2)]
    manager.close()
    assert 0 < seconds[0] < seconds[1]
    since = datetime.datetime.fromisoformat(starts[0]["time"]).timestamp()
    assert lines[-1]["goodput"] == pytest.approx(seconds[1] / (lines[-1]["time"] - since), rel=0.05)


def compile_for_ever():
    """A compiler that is busy for minutes, in one call, as with a large network."""
    import jax

    from tim_jax.training.trainer import Trainer

    def compile(self, batches):
        def program(x):
            for i in range(4000):
                x = jax.numpy.sin(x @ x) + i
            return x

        lowered = jax.jit(program).lower(jax.numpy.zeros((8, 8)))
        print("compiling", flush=True)
        lowered.compile()
        print("all compiled", flush=True)

    Trainer.compile = compile


def draw_for_ever():
    """Pictures that take minutes on the device."""
    import jax

    from tim_jax import train

    def sample_pictures(run, plan):
        def draw(state):
            print("drawing", flush=True)
            x = jax.numpy.ones((200, 200))
            jax.block_until_ready(jax.lax.fori_loop(0, 10**7, lambda i, x: jax.numpy.sin(x @ x), x))

        return draw

    train.sample_pictures = sample_pictures


@pytest.mark.parametrize(
    "change, word, saved, number",
    [(compile_for_ever, "compiling", [], signal.SIGINT), (draw_for_ever, "drawing", [4], signal.SIGTERM)],
)
def test_asked_to_stop_while_it_compiles_or_draws_a_run_ends_at_once(change, word, saved, number, tmp_path):
    run = Run(tmp_path, change, training__steps=8, training__sample_every=4)
    run.wait_for(lambda: word in run.said())
    time.sleep(0.5)
    run.signal(number)
    code, line = run.end(60)
    assert code == 75 and line == f"stopped by {number.name}; no work is lost: start it again with the same command"
    assert "all compiled" not in run.said()
    assert run.steps_saved() == saved and all(good(run, step) for step in saved)


@pytest.mark.slow
@pytest.mark.parametrize("change, word", [(compile_for_ever, "compiling"), (None, "")])
def test_an_interrupt_that_ends_the_reader_of_the_output_too_saves_and_ends_with_75(change, word, tmp_path):
    """Ctrl-C at `python -m tim_jax.train … 2>&1 | tee LOG`; the reader is the first to end."""
    run = Run(tmp_path, change, piped=True, training__steps=10**6)
    run.wait_for(lambda: word in run.said() if change else run.step() >= 3)
    time.sleep(0.5)
    run.reader.send_signal(signal.SIGINT)
    assert run.reader.wait(30) == -signal.SIGINT
    run.signal(signal.SIGINT)
    run.process.join(60)
    assert run.process.exitcode == 75
    saved = run.steps_saved()
    assert len(saved) == (0 if change else 1) and all(good(run, step) for step in saved)


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


def hold_on():
    with Stop() as stop, stop.held():
        print("ready", file=sys.stderr)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            time.sleep(0.1)
        print(f"saved {stop.asked}", file=sys.stderr)
        raise SystemExit(3)


def test_while_work_is_held_only_a_second_interrupt_ends_it(tmp_path):
    assert ended(tmp_path, hold_on, signal.SIGTERM, signal.SIGTERM) == (3, "ready\nsaved SIGTERM\n")
    code, said = ended(tmp_path, hold_on, signal.SIGINT, signal.SIGINT)
    assert code == 75 and "saved" not in said and "stopped by SIGINT" in said


def sample_for_ever():
    from tim_jax import sample
    from tim_jax.runs import workdir

    workdir.load = lambda *_: (print("ready", file=sys.stderr), time.sleep(1000))
    sample.main(["--workdir=none"])


def evaluate_for_ever():
    from tim_jax import evaluate
    from tim_jax.runs import workdir

    workdir.load = lambda *_: (print("ready", file=sys.stderr), time.sleep(1000))
    evaluate.main(["--workdir=none"])


@pytest.mark.parametrize("command", [sample_for_ever, evaluate_for_ever])
def test_sampling_and_evaluation_end_when_asked(command, tmp_path):
    code, said = ended(tmp_path, command, signal.SIGTERM)
    assert code == 75 and said.endswith("stopped by SIGTERM; no work is lost: start it again with the same command\n")


def be_slow():
    with Watchdog(0.4) as watchdog:
        for _ in range(3):
            time.sleep(0.2)
            watchdog.step()
        assert 2.0 <= watchdog.limit < 3.0, watchdog.limit
        time.sleep(1.0)  # more than 0.4 s, less than ten times the usual
        with watchdog.paused():
            time.sleep(4.0)
    time.sleep(1.0)  # nothing is watched any more
    raise SystemExit(3)


def test_what_is_slow_does_not_hang(tmp_path):
    assert ended(tmp_path, be_slow) == (3, "")


def test_a_lock_by_signs_of_life_is_taken_over_when_these_end(tmp_path, monkeypatch):
    """In object storage, where files cannot be locked."""
    monkeypatch.setattr(lock, "BEAT", 0.1)
    path = epath.Path(tmp_path) / "lock"
    with lock._alive(path) as refused:
        assert refused is None
        with lock._alive(path) as other:
            assert f"process {os.getpid()} on " in other
    assert not path.exists()
    path.write_text("of a run that was killed")
    with lock._alive(path) as refused:
        assert refused is None and "killed" not in path.read_text()


def hang():
    """Data that stop coming after the fourth step."""
    from tim_jax import data

    iterate = data.iterate

    def hanging(*args):
        for step, batch in enumerate(iterate(*args)):
            if step == 6:  # two batches lie ahead
                wait_for_a_dead_disk()
            yield batch

    data.iterate = hanging


def wait_for_a_dead_disk():
    time.sleep(10**6)


def test_a_step_that_hangs_ends_the_run_with_all_stacks(tmp_path):
    run = Run(tmp_path, hang, training__steps=100, checkpoint__every=2, training__hang_seconds=2.0)
    code, line = run.end()
    said = run.said()
    assert code == 75 and line.startswith("stopped: a step has taken") and "from the last checkpoint" in line
    assert "in wait_for_a_dead_disk" in said and "Thread 0x" in said
    assert run.steps_saved() == [2, 4] and good(run, 4)


def no_room():
    """No file may grow beyond 80 kB: the kernel refuses to write, as it does on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, resource.RLIM_INFINITY))


def contents(folder):
    files = sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_without_room_for_checkpoints_training_goes_on_and_says_so(finished, tmp_path):
    shutil.copytree(finished.parent, tmp_path, dirs_exist_ok=True)  # with its data, which need more room
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
    before = contents(tmp_path / "run" / "checkpoints")
    run = Run(tmp_path, no_room, training__steps=8, checkpoint__every=2, checkpoint__keep=1)
    code, line = run.end()
    said = run.said()
    assert code == 1 and run.step() == 8
    assert line.startswith("trained to step 8") and "the checkpoint of step 8 could not be written" in line
    assert "warning: the checkpoint of step 6 could not be written" in said
    assert contents(run.workdir / "checkpoints") == before


def spoil():
    """NaN in one row of the batches of steps 4, 6 and from 9 on."""
    from tim_jax.runs import input_pipeline

    class Spoilt(input_pipeline.SourcePipeline):
        def batches(self, start):
            for step, (batch, index) in enumerate(super().batches(start), start + 1):
                if step in (4, 6) or step >= 9:
                    batch["x"] = batch["x"].at[3].set(np.nan)
                yield batch, index

    input_pipeline.open_pipeline, opened = (
        (lambda run: Spoilt(*opened_fields(opened(run)))),
        input_pipeline.open_pipeline,
    )
    from tim_jax import train

    train.open_pipeline = input_pipeline.open_pipeline


def opened_fields(feed):
    return feed.run, feed.source, feed.plan


def test_updates_that_are_not_finite_are_left_out_until_they_are_too_many(tmp_path):
    run = Run(tmp_path, spoil, training__steps=100, checkpoint__every=2, training__max_nonfinite=3)
    code, line = run.end()
    said = run.said()
    assert code == 1 and line.startswith("failed: 3 updates in a row, up to step 11,")
    assert run.steps_saved() == [7, 8], "steps 4 and 6 were saved late, 10 not at all; two stay"
    assert good(run, 8)
    lines = [json.loads(line) for line in (run.workdir / "nonfinite.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 6, 9, 10, 11]
    assert all(len(line["rows"]) == 1 and set(line["rows"][0]) == {"t", "r", "loss", "index"} for line in lines)
    assert f"step 4: loss nan, gradient nan: update left out; examples {lines[0]['rows'][0]['index']} (t " in said
    metrics = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["nonfinite"] for line in metrics[:8]] == [0, 0, 0, 1, 1, 2, 2, 2]


def test_an_altered_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(finished, tmp_path):
    shutil.copytree(finished.parent, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "run" / "checkpoints" / "4"
    path = max(folder.rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    run = Run(tmp_path, training__steps=5, checkpoint__every=2)
    code, line = run.end()
    assert code == 0 and run.steps_saved() == [4, 5] and good(run, 4)
    assert f"warning: checkpoint of step 4 not used: {path.relative_to(folder)} is altered" in run.said()
    assert [path.name for path in (run.workdir / "damaged").iterdir()] == ["4"]


@pytest.mark.parametrize(
    "kills", [pytest.param(2, marks=pytest.mark.slow), pytest.param(30, marks=pytest.mark.nightly)]
)
def test_killed_at_random_moments_a_run_ends_bit_equal(kills):
    """The first of every three kills comes while a checkpoint is written, the second while steps are made."""
    (row,) = bench.run(argparse.Namespace(kills=kills, seed=0))
    assert row["kills"] == row["recovered"] == kills and row["bit_equal"] is True
    assert row["during_save"] >= -(-kills // 3) and row["seconds"] > 0


class Join:
    """What a process of two finds in its environment; an object, since the forked process must be handed it."""

    def __init__(self, index, port):
        self.index, self.port = index, port

    def __call__(self):
        os.environ["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{self.port}"
        os.environ |= {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(self.index)}


@pytest.mark.parametrize("asked", [pytest.param(0, marks=pytest.mark.nightly), pytest.param(1, marks=pytest.mark.slow)])
def test_of_two_processes_one_is_asked_and_both_stop_after_the_same_step(asked, tmp_path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    runs = [Run(tmp_path, Join(index, port), training__steps=10**6) for index in range(2)]
    runs[0].wait_for(lambda: runs[0].step() >= 3)
    runs[asked].signal(signal.SIGTERM)
    codes = [run.end(120)[0] for run in runs]
    assert codes == [75, 75], "\n".join(run.said() for run in runs)
    (step,) = runs[0].steps_saved()
    who = "SIGTERM" if asked == 0 else "a signal to another process"
    assert runs[0].end()[1].startswith(f"stopped by {who} at step {step}, which is saved")
    manifests = sorted(path.name for path in (runs[0].workdir / "checkpoints" / str(step)).glob("manifest-*"))
    assert manifests == ["manifest-0-of-2.sha256", "manifest-1-of-2.sha256"] and good(runs[0], step)
    # One process goes on from what two have saved.
    one = Run(tmp_path, training__steps=step + 1)
    code, line = one.end()
    assert code == 0 and line.startswith(f"trained to step {step + 1}")
