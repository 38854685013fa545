"""Commands that make shards, as real processes: run, killed, and several at once."""

import hashlib
import os
import random
import signal
import socket
import subprocess
import sys

from tests.helpers.devices import for_devices


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


def signalled(name, first, delay, latest, arguments):
    """A process of the command that is sent a signal at that moment: see tests/helpers/signals.py."""
    return start(["tests.helpers.signals", name, str(first), str(delay), str(latest), *arguments])


def killed(arguments, folder, kills, while_starting=(), seed=0):
    """(shards after each kill, how many kills left half a file) of a command that is killed again and again.

    Some kills come while it starts, by their numbers; the others when one or two shards more are written, as their next
    file is moved to its place or at random after it; `seed` says which.
    """
    rng, shards, halves = random.Random(seed), [], 0

    def names():
        return {path.name for path in folder.iterdir()} if folder.exists() else set()

    for kill in range(kills):
        before = names()
        if kill in while_starting:
            moment = (0, rng.uniform(0.1, 4), 1)
        else:
            first = rng.randint(3, 4)
            moment = (first, rng.choice([0, rng.uniform(0.001, 0.05)]), first + 2)
        process = signalled("SIGKILL", *moment, arguments)
        said = process.communicate(timeout=400)[0]
        assert process.returncode == -signal.SIGKILL, said[-3000:]
        shards.append(len(list(folder.glob("rows-*.json"))))
        halves += any(name.endswith(".new") for name in names() - before)
    return shards, halves
