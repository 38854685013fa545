"""Folders that are read by some processes and removed by others: none goes while it is read, or is seen in part.

A reader holds a folder by a shared lock, which the operating system lets go of when the process ends, however it ends.
Who removes one takes the lock for itself, and leaves alone what is held. Object storage and file systems without locks
know no holds.
"""

import errno
import fcntl
import os
import shutil
import weakref

from tim_jax.system import files, lock


class Gone(FileNotFoundError):
    """A folder is not there any more."""

    def __init__(self, folder: os.PathLike | str):
        super().__init__(errno.ENOENT, "it has been removed", str(folder))


class Hold:
    """Keeps a folder from being removed as long as this object lives."""

    def __init__(self, folder: os.PathLike | str):
        """Raises Gone if it is not there, or is being removed."""
        if not files.is_local(folder):
            return
        try:
            number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            raise Gone(folder) from None
        weakref.finalize(self, os.close, number)
        if _locked(number, fcntl.LOCK_SH) is False or not _same(folder, number):
            raise Gone(folder)


def remove(folder: os.PathLike | str, leaving: os.PathLike | str, without_locks: bool = True) -> bool:
    """Removes a folder on a disk, unless somebody holds it.

    Args:
        folder: Which.
        leaving: The name that it has as soon as it is gone for readers, beside it.
        without_locks: Whether it is removed also where the file system has no locks, so that nobody can hold it.

    Returns:
        Whether it has been removed.

    Raises:
        OSError: If it cannot be.
    """
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        locked = _locked(number, fcntl.LOCK_EX)
        if not (without_locks if locked is None else locked):
            return False
        os.rename(folder, leaving)
        shutil.rmtree(leaving)
        return True
    finally:
        os.close(number)


def _locked(number: int, kind: int) -> bool | None:
    """Whether a folder is locked now; None where folders cannot be locked at all."""
    try:
        fcntl.flock(number, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in lock.WITHOUT_LOCKS:
            raise
        return None
    return True


def _same(folder: os.PathLike | str, number: int) -> bool:
    """Whether an open folder still has its name."""
    try:
        return os.path.samestat(os.stat(folder), os.fstat(number))
    except FileNotFoundError:
        return False
