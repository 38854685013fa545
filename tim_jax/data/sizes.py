"""The size of every image of a source, read from headers once, in parallel, and cached by the source's fingerprint."""

import dataclasses
import functools
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath

from tim_jax.data import tables
from tim_jax.data.bad_records import REASONS, BadRecord
from tim_jax.data.sources.base import Source, digest
from tim_jax.system.progress import Bar

CHUNK = 1024
IN_FLIGHT = 64


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of all images of a source.

    Attributes:
        height, width: in pixels, (n,); 0 for examples that cannot be used.
        bad: reason -> how many examples cannot be used for it, as far as their headers tell.
        listed: the file that lists these bad records, "" if there are none.
    """

    height: np.ndarray
    width: np.ndarray
    bad: dict[str, int]
    listed: str = ""

    def __len__(self) -> int:
        return len(self.height)


def read_sizes(source: Source, directory: Any, threads: int = 8) -> Sizes:
    """The sizes of all images. A source whose images are all of one size is not read.

    Args:
        source: whose images.
        directory: the folder that the table of sizes is written below, and read from where it is there already.
        threads: how many threads read headers.
    """
    height, width, _ = source.image_shape
    if height and width:
        count = len(source)
        return Sizes(np.broadcast_to(np.int32(height), count), np.broadcast_to(np.int32(width), count), {})
    folder = epath.Path(directory).expanduser() / f"sizes-{digest('sizes 1', source.fingerprint())}"
    if not tables.exists(folder):
        _write(source, folder, threads)
    table = tables.Table(folder)
    listed = str(folder / "faults.jsonl") if table.meta["faults"] else ""
    return Sizes(table["height"], table["width"], table.meta["faults"], listed)


def _write(source: Source, folder: epath.Path, threads: int) -> None:
    starts = range(0, len(source), CHUNK)
    counts: Counter[str] = Counter()
    lines: list[str] = []
    with (
        tables.writing(folder, height=np.int32, width=np.int32) as writer,
        ThreadPoolExecutor(threads) as pool,
        Bar(total=len(source), desc=f"sizes of {source.name}", unit=" images", unit_scale=True) as progress,
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
    return start, source.headers(start, min(start + CHUNK, len(source)))


def _line(source: Source, i: int, error: BadRecord) -> str:
    identity = source.identity(i)
    return json.dumps({"row": i, "identity": identity, "reason": error.reason, "detail": error.detail}) + "\n"
