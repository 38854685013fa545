"""What may be removed from a folder of checkpoints: what a save has left unfinished, and a checkpoint nobody reads.

A reader holds the checkpoint that it reads by a shared lock on its folder, which the operating system lets go of when
the process ends. Removal takes the lock for itself, and leaves alone what is held. Object storage and file systems
without locks know no holds; there, what is removed is gone.
"""

import contextlib
import errno
import fcntl
import os
import re
import time
import weakref

from etils import epath

from tim_jax.system import files, lock

UNFINISHED = re.compile(r"\d+\.orbax-checkpoint-tmp(-\d+)?")  # a step's folder on a disk while it is written or removed
COMMITTED = "commit_success.txt"  # what a step's folder in object storage has once it is whole


class Gone(OSError):
    """A checkpoint has been removed."""

    def __init__(self, folder: epath.Path):
        super().__init__(errno.ENOENT, "this checkpoint has been removed", str(folder))


class Hold:
    """Keeps a checkpoint from being removed as long as this object lives."""

    def __init__(self, folder: epath.Path):
        """Raises Gone if the checkpoint is not there any more."""
        if not files.is_local(folder):
            return
        try:
            number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            raise Gone(folder) from None
        weakref.finalize(self, os.close, number)
        if not _locked(number, fcntl.LOCK_SH) or not _same(folder, number):
            raise Gone(folder)


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
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not _locked(number, fcntl.LOCK_EX):
            return False
        leaving = folder.parent / f"{folder.name}.orbax-checkpoint-tmp-{time.time_ns()}"  # see UNFINISHED
        folder.rename(leaving)
        leaving.rmtree()
        return True
    finally:
        os.close(number)


def _all_unfinished(directory: epath.Path) -> list[epath.Path]:
    try:
        return [path for path in directory.iterdir() if _unfinished(path)]
    except OSError:
        return []


def _unfinished(path: epath.Path) -> bool:
    if not files.is_local(path):
        return path.name.isdigit() and path.is_dir() and not (path / COMMITTED).exists()
    return bool(UNFINISHED.fullmatch(path.name)) and path.is_dir() and not os.path.islink(path)


def _locked(number: int, kind: int) -> bool:
    """Whether a folder is locked now, or cannot be locked at all."""
    try:
        fcntl.flock(number, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in lock.WITHOUT_LOCKS:
            raise
    return True


def _same(folder: epath.Path, number: int) -> bool:
    try:
        return os.path.samestat(os.stat(folder), os.fstat(number))
    except FileNotFoundError:
        return False
