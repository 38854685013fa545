"""Commands that make shards, as real processes: run, killed, and several at once."""

import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import time

from tests.flags import for_devices


def contents(folder):
    """{name: checksum} of all files but the lock, which says who had it."""
    names = sorted(path.name for path in folder.iterdir() if path.name != "lock")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def start(arguments, devices=2, **more):
    """A process of `python -m` arguments."""
    environment = os.environ | {"XLA_FLAGS": for_devices(devices)} | more
    command = [sys.executable, "-m", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ends(process, code=0):
    """What it says until it ends, by that exit code."""
    said = process.communicate(timeout=400)[0]
    assert process.returncode == code, said[-3000:]
    return said


def in_two(arguments):
    """What two processes say that join each other."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    joined = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    running = [start(arguments, **joined, JAX_PROCESS_ID=str(i)) for i in range(2)]
    return [ends(process) for process in running]


def killed(arguments, folder, kills, while_starting=()):
    """(shards after each kill, how many kills left half a file) of a command that is killed again and again.

    Some kills come while it starts; the others when there are new files, the last of which may be half of one, or just
    after.
    """
    rng, shards, halves = random.Random(0), [], 0

    def names():
        return {path.name for path in folder.iterdir()} if folder.exists() else set()

    for kill in range(kills):
        before, process = names(), start(arguments)
        if kill in while_starting:
            time.sleep(rng.uniform(0, 4))
        else:
            new = rng.randint(1, 4)
            while process.poll() is None and len(names() - before) < new:
                time.sleep(0.0005)
            time.sleep(rng.choice([0, rng.uniform(0, 0.05)]))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        shards.append(len(list(folder.glob("rows-*.json"))))
        halves += any(name.endswith(".new") for name in names() - before)
    return shards, halves
