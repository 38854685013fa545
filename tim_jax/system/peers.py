"""What a process does when another one of its run has gone: it ends at once with RESTART, so that all start again.

JAX finds out by itself after a minute without heartbeats. What is told here at once is a lost connection.
"""

import contextlib
import re
import sys
from collections.abc import Iterator

from tim_jax.system.exit_codes import RESTART, leave

# How XLA's collectives and JAX's coordination service put it.
LOST = re.compile(
    r"\bGloo\b|NCCL.*(remote|network|time(d )?out)|heartbeat timeout|[Cc]oordination ?[Ss]ervice|task is set to ERROR",
    re.DOTALL,
)
# Of the same libraries, but every start would fail alike.
LASTING = re.compile(r"RESOURCE_EXHAUSTED|out of memory|INVALID_ARGUMENT", re.I)


def gone(error: BaseException) -> bool:
    """Returns whether an error says that another process has gone."""
    if not isinstance(error, RuntimeError | ValueError):  # JAX raises both
        return False
    text = str(error)
    return bool(LOST.search(text)) and not LASTING.search(text)


def leave_if_gone(error: BaseException | None) -> None:
    """Ends the process with exit code RESTART if this error says that another one has gone; else does nothing."""
    if error is not None and gone(error):
        said = " ".join(str(error).split())[:300]
        print(f"\nstopped: another process has gone ({said}); the same command goes on", file=sys.stderr)
        leave(RESTART)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """A context that ends the process where another one goes, before what comes around it waits for that one."""
    try:
        yield
    except Exception as error:
        leave_if_gone(error)
        raise
