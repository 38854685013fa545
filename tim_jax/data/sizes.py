"""The size of every image of a source, read from headers once, in parallel, and kept with the source's fingerprint."""

import dataclasses
import functools
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath
from tqdm import tqdm

from tim_jax.data import tables
from tim_jax.data.faults import REASONS, BadRecord
from tim_jax.data.sources.base import Source, digest

CHUNK = 1024
IN_FLIGHT = 64


@dataclasses.dataclass(frozen=True)
class Sizes:
    """height, width: (n,) pixels, 0 for rows that cannot be used. faults: reason -> how many rows have it, found in
    headers. listed: the file that names each of them, "" if there are none."""

    height: np.ndarray
    width: np.ndarray
    faults: dict[str, int]
    listed: str = ""

    def __len__(self) -> int:
        return len(self.height)


def headers(source: Source, start: int, stop: int) -> list[tuple[int, int] | BadRecord]:
    """(height, width), or what is wrong, of the rows from start to stop - 1."""
    if hasattr(source, "headers"):
        return source.headers(start, stop)
    return [header(source, i) for i in range(start, stop)]


def header(source: Source, i: int) -> tuple[int, int] | BadRecord:
    """(height, width) of row i, or what is wrong with it."""
    try:
        return source.header(i)
    except BadRecord as error:
        return error


def read_sizes(source: Source, directory: Any, threads: int = 8) -> Sizes:
    """The sizes of all rows; kept below `directory`, and read from there if they are.

    A source whose rows are all of one size is not read at all.
    """
    height, width, _ = source.image_shape
    if height and width:
        rows = len(source)
        return Sizes(np.broadcast_to(np.int32(height), rows), np.broadcast_to(np.int32(width), rows), {})
    folder = epath.Path(directory).expanduser() / f"sizes-{digest('sizes 1', source.fingerprint())}"
    if not tables.exists(folder):
        _write(source, folder, threads)
    table = tables.Table(folder)
    listed = str(folder / "faults.jsonl") if table.meta["faults"] else ""
    return Sizes(table["height"], table["width"], table.meta["faults"], listed)


def _write(source: Source, folder: epath.Path, threads: int) -> None:
    starts = range(0, len(source), CHUNK)
    counts, lines = Counter(), []
    with (
        tables.writing(folder, height=np.int32, width=np.int32) as writer,
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(source), desc=f"sizes of {source.name}", unit=" rows", unit_scale=True) as progress,
    ):
        read = functools.partial(_read_chunk, source)
        for first in range(0, len(starts), IN_FLIGHT):  # a bounded number of chunks at a time
            for start, found in pool.map(read, starts[first : first + IN_FLIGHT]):
                sizes = np.array([(0, 0) if isinstance(size, BadRecord) else size for size in found], np.int32)
                writer.append(height=sizes[:, 0], width=sizes[:, 1])
                for i, size in enumerate(found, start):
                    if isinstance(size, BadRecord):
                        counts[size.reason] += 1
                        lines.append(_line(source, i, size))
                progress.update(len(found))
        writer.meta["faults"] = {reason: counts[reason] for reason in REASONS if counts[reason]}
        if lines:
            writer.write_text("faults.jsonl", "".join(lines))


def _read_chunk(source: Source, start: int) -> tuple[int, list[tuple[int, int] | BadRecord]]:
    return start, headers(source, start, min(start + CHUNK, len(source)))


def _line(source: Source, i: int, error: BadRecord) -> str:
    identity = source.identity(i)
    return json.dumps({"row": i, "identity": identity, "reason": error.reason, "detail": error.detail}) + "\n"
