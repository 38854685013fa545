"""A process ends with 75 where another one has gone, and with nothing else where none has."""

import subprocess
import sys

import jax
import pytest

from tim_jax.system import peers
from tim_jax.system.exit_codes import RESTART

# As JAX 0.10 has put it on processes of which one was killed.
SEEN = [
    ValueError("UNKNOWN: Gloo AllGather failed: [external/gloo/gloo/transport/tcp/pair.cc:538] Read error "
               "[127.0.0.1]:16790: Connection reset by peer"),
    jax.errors.JaxRuntimeError("UNKNOWN: Gloo context initialization failed: DEADLINE_EXCEEDED: GetKeyValue()"),
    jax.errors.JaxRuntimeError("INTERNAL: Barrier failed because: task is set to ERROR: UNAVAILABLE: Task 1 heartbeat "
                               "timeout."),
]  # fmt: skip
OTHERS = [
    ValueError("data.path is 'gloo'; it must have the classes of before: 'igloo' is gone"),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory; NCCL could not allocate"),
    jax.errors.JaxRuntimeError("INTERNAL: cublas error"),
    ConnectionResetError(104, "Connection reset by peer"),
    SystemExit(2),
]


@pytest.mark.parametrize("error, found", [(error, True) for error in SEEN] + [(error, False) for error in OTHERS])
def test_a_lost_process_is_told_from_other_errors(error, found):
    assert peers.gone(error) == found


@pytest.mark.parametrize("around", ["Stop(), user_errors()", "unwound(), peers.watched()"])
def test_whatever_it_was_doing_it_ends_at_once(around):
    """Before what is unwound after it, which would wait for the other."""
    imports = "from tim_jax.training.preemption import Stop" if "Stop" in around else ""
    text = f"""
import contextlib, time
from tim_jax.system import peers
from tim_jax.system.user_errors import user_errors
{imports}
@contextlib.contextmanager
def unwound():
    try:
        yield
    finally:
        time.sleep(1000)
with {around}:
    raise ValueError({str(SEEN[0])!r})
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert done.returncode == RESTART and "stopped: another process has gone" in done.stderr
    assert "Traceback" not in done.stderr and "error:" not in done.stderr
