"""What tells a file of today from one of before without reading it: its size and the time of its last change."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from etils import epath

MOST, MOST_REMOTE = 1024, 128  # files of a data set that are looked at, on a disk and in object storage
THREADS = 16


def stamp(path: epath.Path) -> tuple[int, float]:
    """(bytes, time of the last change) of a file or folder, as exactly as its storage knows them."""
    if os.path.exists(path):
        local = os.stat(path)
        return local.st_size, local.st_mtime_ns
    remote = path.stat()
    return remote.length, remote.mtime


def stamps(paths: Iterable[epath.Path]) -> list[tuple[int, float]]:
    """The stamp of each path, (-1, 0) of one that is not there."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(_stamp_or_none, paths))


def _stamp_or_none(path: epath.Path) -> tuple[int, float]:
    try:
        return stamp(path)
    except (OSError, ValueError):
        return -1, 0


def stamps_of_some(count: int, path: Callable[[int], epath.Path | None], remote: bool) -> list[tuple[int, float]]:
    """The stamps of the files of a data set, or of some that lie evenly among them.

    Args:
        count: how many files there are.
        path: number of a file → where it is, None for one that is nowhere.
        remote: whether they lie in object storage, where each look takes its time.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        paths = pool.map(path, spread(count, MOST_REMOTE if remote else MOST))
        return stamps(found for found in paths if found is not None)


def spread(count: int, most: int) -> list[int]:
    """All numbers below `count`, or `most` of them that lie evenly, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)).tolist()
