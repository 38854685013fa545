"""What can be made again, kept below a size in its folder: what was used longest ago goes first.

An entry is a file or a folder of files. Who reads a folder holds it (holds.py). What is held stays, and so does what
was used within RECENT seconds: another process may be about to open it, or may still be writing it. On file systems
without locks folders stay.
"""

import contextlib
import os
import re
import secrets
import time
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from tim_jax.system import files, holds

RECENT = 3600.0
GIB = 2**30


def used(folder: os.PathLike | str) -> holds.Hold:
    """Says that a folder is used now, and returns what keeps it from being removed. Raises Gone if it is not there."""
    hold = holds.Hold(folder)
    with contextlib.suppress(OSError):  # it is not ours to change
        os.utime(folder)
    return hold


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
        if path.is_dir():
            leaving = path.with_name(f"{path.name.partition('.')[0]}.gone-{secrets.token_hex(4)}")
            return holds.remove(path, leaving, without_locks=False)
        path.unlink()
        return True
    except OSError:  # another process was first, or it is not ours to remove
        return False
