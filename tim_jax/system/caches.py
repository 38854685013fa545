"""What can be made again, kept below a size in its folder: what was used longest ago goes first.

An entry is a file or a folder of files. Who reads a folder holds it by a shared lock, which the operating system lets
go of when the process ends. What is held stays, and so does what was used within RECENT seconds: another process may
be about to open it, or may still be writing it. On file systems without locks folders stay.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import time
import weakref
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from tim_jax.system import files

RECENT = 3600.0
GIB = 2**30


class Hold:
    """Keeps a folder from being removed as long as this object lives, and says that it is used now."""

    def __init__(self, folder: os.PathLike | str):
        """Raises FileNotFoundError if it is not there."""
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        weakref.finalize(self, os.close, number)
        with contextlib.suppress(OSError):  # without locks, or not ours to change
            fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.utime(number)


class Entry(NamedTuple):
    """What is kept. used: Seconds since the epoch. bytes: Of all its files."""

    used: float
    bytes: int
    path: Path


def trim(folder: Any, names: re.Pattern[str], gib: float) -> None:
    """Removes what was used longest ago from a folder until the rest takes no more than a size.

    Args:
        folder: On a disk; in object storage, which has rules of its own for this, nothing is done.
        names: What is kept there by whole names; anything else stays.
        gib: The size; 0 for any.
    """
    if not gib or not files.is_local(folder):
        return
    entries = sorted(_entries(Path(folder), names))
    total = sum(entry.bytes for entry in entries)
    for entry in entries:
        if total <= gib * GIB or entry.used > time.time() - RECENT:
            return
        if _remove(entry.path):
            logging.info("%s is removed, so that %s takes at most %g GiB", entry.path.name, folder, gib)
            total -= entry.bytes


def _entries(folder: Path, names: re.Pattern[str]) -> list[Entry]:
    found = []
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            if names.fullmatch(path.name) and not path.is_symlink():
                with contextlib.suppress(OSError):  # another process has removed it
                    found.append(_entry(path))
    return found


def _entry(path: Path) -> Entry:
    about = path.stat()
    if not path.is_dir():
        return Entry(max(about.st_atime, about.st_mtime), about.st_size, path)
    inside = [file.stat() for file in path.rglob("*")]
    used = max([about.st_mtime, *(each.st_mtime for each in inside)])
    return Entry(used, sum(each.st_size for each in inside), path)


def _remove(path: Path) -> bool:
    """Whether an entry has been removed; no reader ever sees a folder in part."""
    try:
        if not path.is_dir():
            path.unlink()
            return True
        number = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            gone = path.with_name(f"{path.name.partition('.')[0]}.gone-{secrets.token_hex(4)}")
            path.rename(gone)
        finally:
            os.close(number)
        shutil.rmtree(gone, ignore_errors=True)
        return True
    except OSError:  # held, without locks, or gone
        return False
