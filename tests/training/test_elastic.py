"""A process that is gone for good: the others go on by themselves, bit-equal to a planned resume with as many."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from tests.helpers.configs import TINY_NETWORK, flags, tiny_config
from tests.helpers.devices import for_devices
from tests.helpers.launch import LAUNCH, ROOT
from tests.helpers.processes import ended_at_last
from tests.helpers.workdirs import told
from tim_jax import train
from tim_jax.bench import faults
from tim_jax.config.build import build

SMALL = TINY_NETWORK | {
    "data.batch_size": 48, "optimizer.warmup_steps": 0, "optimizer.schedule": "constant", "training.sample_every": 0,
    "training.sample_steps": 1, "training.log_every": 1, "checkpoint.every": 5, "checkpoint.keep": 1000,
}  # fmt: skip
PATIENCE = 1800.0  # seconds, on a machine that does much else


@pytest.mark.parametrize(
    "words, said",
    [
        (["--min-processes=0"], "--min-processes is 0; it must be at least 1"),
        (["--min-processes=2"], "--min-processes is 2; it must be at most the number of processes, 1"),
        (["--wait=5"], "--wait is 5; it has no effect without --min-processes"),
        (["--min-processes=1", "--wait=0"], "--wait is 0; it must be above 0 and finite"),
        (["--min-processes=1", "--wait=nan"], "--wait is nan; it must be above 0 and finite"),
    ],
)
def test_what_cannot_be_is_refused(words, said, tmp_path, capsys):
    given = ["--config=digits", f"--workdir={tmp_path / 'run'}", *flags(SMALL), *words]
    assert told(train.main, given, capsys) == f"error: {said}"
    assert not (tmp_path / "run").exists()


class Hosts:
    """Hosts 0 … n−1, of which each has launch/hosts.sh running, on this machine."""

    def __init__(self, root, count, *words):
        self.root, self.count, self.words, self.running = root, count, words, {}
        self.starts = root / "run" / "starts.jsonl"
        with socket.create_server(("127.0.0.1", 0)) as found:
            self.address = f"127.0.0.1:{found.getsockname()[1]}"

    def variables(self, count, index):
        own = {"JAX_COORDINATOR_ADDRESS": self.address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
        own |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": for_devices(1), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        return os.environ | own | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "PAUSE": "0"}

    def start(self, index):
        with (self.root / f"host{index}.txt").open("a") as log:
            self.running[index] = subprocess.Popen(
                ["bash", LAUNCH / "hosts.sh", *self.words], env=self.variables(self.count, index), stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip

    def kill(self, index):
        """The host with all that it runs, as when its power fails."""
        os.killpg(self.running.pop(index).pid, signal.SIGKILL)

    def said(self, index):
        return (self.root / f"host{index}.txt").read_text()

    def processes(self):
        """With how many processes the run was started each time."""
        lines = self.starts.read_text().splitlines() if self.starts.exists() else []
        return [json.loads(line)["processes"] for line in lines]

    def latest(self):
        return max(complete(self.root / "run"), default=0)

    def wait_for(self, happened):
        end = time.monotonic() + PATIENCE
        while not happened():
            ended = [index for index, process in self.running.items() if process.poll() is not None]
            assert not ended and time.monotonic() < end, "\n".join(
                self.said(index)[-2000:] for index in range(self.count)
            )
            time.sleep(0.1)


def complete(folder):
    return [int(path.parent.name) for path in folder.glob("checkpoints/*/manifest-*") if path.parent.name.isdigit()]


@pytest.mark.nightly
def test_of_four_hosts_three_go_on_and_the_fourth_comes_back(tmp_path, data_directory):
    """Host 0, which coordinates, is gone; nobody tells the others. When it is back, it waits for the next restart."""
    common = ["--config=digits", *flags(SMALL | {"loader.directory": data_directory})]
    hosts = Hosts(
        tmp_path, 4, *common, f"--workdir={tmp_path / 'run'}", "--config.training.steps=1000000", "--min-processes=3",
        "--wait=12",
    )  # fmt: skip
    try:
        for index in range(4):
            hosts.start(index)
        hosts.wait_for(lambda: hosts.latest() >= 5)
        hosts.kill(0)
        began = time.monotonic()
        hosts.wait_for(lambda: "going on from step" in hosts.said(1))
        fewer = int(hosts.said(1).rpartition("going on from step ")[2].split()[0])
        hosts.wait_for(lambda: hosts.latest() > fewer)
        print(f"{time.monotonic() - began:.0f} s from the kill to the first checkpoint of three, from step {fewer} on")
        assert hosts.processes() == [4, 3]
        assert "3 of 4 processes are here and go on" in hosts.said(1)

        hosts.start(0)
        hosts.wait_for(lambda: (tmp_path / "run" / "processes" / "0.waiting").exists())
        assert hosts.processes() == [4, 3]
        for child in subprocess.check_output(["pgrep", "-P", str(hosts.running[2].pid)], text=True).split():
            os.kill(int(child), signal.SIGTERM)
        hosts.wait_for(lambda: "going on from step" in hosts.said(0))
        more = int(hosts.said(0).rpartition("going on from step ")[2].split()[0])
        hosts.wait_for(lambda: hosts.latest() > more)
        assert hosts.processes() == [4, 3, 4] and more > fewer
    finally:
        for index in list(hosts.running):
            hosts.kill(index)

    # The same by hand: three processes, and each microbatch in two, so that no device holds more than before.
    planned = tmp_path / "planned"
    shutil.copytree(tmp_path / "run" / "checkpoints" / str(fewer), planned / "checkpoints" / str(fewer))
    shutil.copy(tmp_path / "run" / "config.json", planned)
    words = [*common, f"--workdir={planned}", f"--config.training.steps={more}", "--config.mesh.accumulation=2"]
    command = [sys.executable, "-m", "tim_jax.train", *words]
    running = [
        subprocess.Popen(command, env=hosts.variables(3, index), start_new_session=True) for index in range(3)
    ]  # fmt: skip
    with ended_at_last(running):
        assert [process.wait(PATIENCE) for process in running] == [0, 0, 0]
    abstract = build(tiny_config(changes={k: str(v) for k, v in SMALL.items()}), jax.devices()[:1]).trainer.abstract
    by_themselves, by_hand = (faults.state_leaves(folder, abstract, more) for folder in (tmp_path / "run", planned))
    assert by_themselves == by_hand and len(by_hand[1]) > 20
    assert by_hand[1] != faults.state_leaves(planned, abstract, fewer)[1]
