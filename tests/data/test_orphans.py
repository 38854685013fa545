"""Processes that read data end with the run that they read for, also where it is killed."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

READER = """
import grain, time
from tim_jax import data

if __name__ == "__main__":
    stream = data.iterate(grain.MapDataset.range(10**9), workers=2)
    for _ in range(10):
        next(stream)
    print("ready", flush=True)
    time.sleep(600)
"""


def children_of(process):
    """Numbers of the processes that a process has started, by /proc."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def gone(process):
    stat = pathlib.Path(f"/proc/{process}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until(happened, seconds):
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        time.sleep(0.1)
    assert happened()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_of_a_killed_run_end(tmp_path):
    (tmp_path / "reader.py").write_text(READER)
    root = str(pathlib.Path(__file__).resolve().parents[2])
    run = subprocess.Popen(
        [sys.executable, tmp_path / "reader.py"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert run.stdout.readline() == "ready\n"
    workers = children_of(run.pid)
    assert len(workers) >= 2
    run.send_signal(signal.SIGKILL)
    run.wait()
    wait_until(lambda: all(gone(worker) for worker in workers), 30)
