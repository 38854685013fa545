"""Processes whose output nobody reads: real pipes, real readers that end, real signals."""

import os
import signal
import subprocess
import sys

import pytest

from tim_jax.system.exit_codes import DONE, FAILED, RESTART

GO_ON = "from tim_jax.system import streams; streams.keep_going()\n"


def started(code, *tail, **more):
    """A process whose output, both kinds, goes to a reader in the same group, as at a terminal."""
    reader = subprocess.Popen(tail or ["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, process_group=0)
    process = subprocess.Popen(
        [sys.executable, *code], stdout=reader.stdin, stderr=subprocess.STDOUT, process_group=reader.pid, **more
    )
    reader.stdin.close()
    return process, reader


@pytest.mark.parametrize("unbuffered", [[], ["-u"]])
@pytest.mark.parametrize("where", ["stdout", "stderr"])
def test_what_has_no_reader_is_dropped_and_the_exit_code_stays(where, unbuffered):
    write = f"import sys\nfor i in range(99):\n    print('x' * 999, file=sys.{where}, flush=i % 2)\nsys.exit(75)"
    for before, code in (("", {FAILED, 120}), (GO_ON, {RESTART})):
        process, reader = started([*unbuffered, "-c", before + "input()\n" + write], stdin=subprocess.PIPE)
        reader.kill()
        reader.wait()
        process.communicate(b"\n")
        assert process.returncode in code


def test_what_has_a_reader_arrives_whole_and_in_order():
    text = GO_ON + "import sys\nfor i in range(9):\n    print(i, 'ä\\udcff'); print(i, file=sys.stderr)"
    environ = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([sys.executable, "-c", text], env=environ, capture_output=True, check=True)
    assert done.stdout.decode().splitlines() == [f"{i} ä\\udcff" for i in range(9)]
    assert done.stderr.decode().split() == [str(i) for i in range(9)]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_an_error_of_results_but_not_of_messages():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", GO_ON + "print('x', flush=True)"], stdout=full, capture_output=False
        )
        assert done.returncode not in (DONE, RESTART)
        text = GO_ON + "import sys; print('x', file=sys.stderr, flush=True)"
        assert subprocess.run([sys.executable, "-c", text], stderr=full).returncode == DONE


STOPPED = """
import sys, time
from tim_jax.system import streams
from tim_jax.training.preemption import Stop
streams.keep_going()
with Stop() as stop:
    stop.before = lambda: time.sleep(0.5)
    print("ready", flush=True)
    open(sys.argv[1], "w").close()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        sum(range(10**6))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_ends_the_reader_too_ends_the_process_with_75(number, tmp_path):
    """As Ctrl-C at `python -m tim_jax.train … 2>&1 | tee log`, which every process of the line gets."""
    process, reader = started(["-c", STOPPED, str(tmp_path / "ready")], "tee", str(tmp_path / "log"))
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
    os.killpg(reader.pid, number)
    assert process.wait(timeout=30) == RESTART
    assert reader.wait() == -number


def test_help_that_is_cut_short_is_no_failure():
    process, reader = started(["-m", "tim_jax", "--help"], "true")
    reader.wait()
    assert process.wait() == DONE


def test_an_interrupt_ends_a_command_by_its_signal_with_one_line():
    """Of commands that have nothing to save; those that have end with 75."""
    command = (
        "import sys, time; from tim_jax.system.user_errors import ArgumentParser; ArgumentParser().parse_args([]);"
        "print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "\nstopped by SIGINT\n" and process.returncode == -signal.SIGINT
