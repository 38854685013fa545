"""What may be removed from a folder of checkpoints: what a save has left unfinished, and a checkpoint nobody reads.

A reader holds the checkpoint that it reads (holds.py). Object storage and file systems without locks know no holds;
there, what is removed is gone.
"""

import contextlib
import os
import re
import time

from etils import epath

from tim_jax.system import files, holds

UNFINISHED = re.compile(r"\d+\.orbax-checkpoint-tmp(-\d+)?")  # a step's folder on a disk while it is written or removed
COMMITTED = "commit_success.txt"  # what a step's folder in object storage has once it is whole


def clear(directory: epath.Path, calm: float = 0.0) -> None:
    """Removes what saves that failed or were killed have left in a folder of checkpoints; nothing of another name.

    Args:
        directory: The folder.
        calm: Threads of a save that has just failed may still write, and make its folder anew. Removal is repeated
            until there has been nothing to remove for so many seconds, or for a minute in all.
    """
    now = time.monotonic()
    until, end = now + calm, now + 60.0
    while True:
        for path in _all_unfinished(directory):
            until = time.monotonic() + calm
            with contextlib.suppress(OSError):
                path.rmtree()
        if time.monotonic() >= min(until, end):
            return
        time.sleep(0.05)


def remove(folder: epath.Path) -> bool:
    """Removes a checkpoint, which no reader ever sees in part; returns False where a reader holds it.

    Raises:
        OSError: If it cannot be removed.
    """
    if not files.is_local(folder):
        (folder / COMMITTED).unlink(missing_ok=True)  # first: without it no reader takes the rest for a checkpoint
        folder.rmtree()
        return True
    leaving = folder.parent / f"{folder.name}.orbax-checkpoint-tmp-{time.time_ns()}"  # see UNFINISHED
    return holds.remove(folder, leaving)


def _all_unfinished(directory: epath.Path) -> list[epath.Path]:
    try:
        return [path for path in directory.iterdir() if _unfinished(path)]
    except OSError:
        return []


def _unfinished(path: epath.Path) -> bool:
    if not files.is_local(path):
        return path.name.isdigit() and path.is_dir() and not (path / COMMITTED).exists()
    return bool(UNFINISHED.fullmatch(path.name)) and path.is_dir() and not os.path.islink(path)
