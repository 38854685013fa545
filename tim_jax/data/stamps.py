"""What tells a file of today from one of before without reading it: its size and the time of its last change."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from etils import epath

MOST = 1024  # files of a data set that are looked at
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


def spread(count: int, most: int = MOST) -> list[int]:
    """All numbers below `count`, or `most` of them that lie evenly, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)).tolist()
