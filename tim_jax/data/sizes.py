"""The size of every image of a source, read from headers once, in parallel, and cached by the source's fingerprint.

Images that could not be used are looked at again each time, so that what was repaired is used without further ado.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator
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

Found = tuple[int, int] | BadRecord  # (height, width) of an image, or what is wrong with it


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
        _write(source, folder, _measured(source, threads))
    table = tables.Table(folder)
    if table.meta["faults"] and (repaired := _measured_again(source, table, threads)):
        old = np.stack([table["height"], table["width"]], axis=1).tolist()
        faults = {row: repaired.get(row, fault) for row, fault in _listed(folder).items()}
        tables.discard(folder)
        _write(source, folder, (faults.get(row, tuple(size)) for row, size in enumerate(old)))
        table = tables.Table(folder)
    listed = str(folder / "faults.jsonl") if table.meta["faults"] else ""
    return Sizes(table["height"], table["width"], table.meta["faults"], listed)


def _measured(source: Source, threads: int) -> Iterator[Found]:
    """Measures all images, with a progress bar."""
    starts = range(0, len(source), CHUNK)
    with (
        ThreadPoolExecutor(threads) as pool,
        Bar(total=len(source), desc=f"sizes of {source.name}", unit=" images", unit_scale=True, delay=1) as progress,
    ):
        for first in range(0, len(starts), IN_FLIGHT):  # a bounded number of chunks at a time
            some = starts[first : first + IN_FLIGHT]
            for found in pool.map(lambda start: source.headers(start, min(start + CHUNK, len(source))), some):
                yield from found
                progress.update(len(found))


def _measured_again(source: Source, table: tables.Table, threads: int) -> dict[int, Found]:
    """{image: its size} of those that could not be used when the table was written and can be now."""
    rows = np.flatnonzero(np.asarray(table["height"]) == 0).tolist()
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda row: source.headers(row, row + 1)[0], rows)
        return {row: size for row, size in zip(rows, found, strict=True) if not isinstance(size, BadRecord)}


def _write(source: Source, folder: epath.Path, found: Iterable[Found]) -> None:
    counts: Counter[str] = Counter()
    lines: list[str] = []
    sizes: list[tuple[int, int]] = []
    with tables.writing(folder, height=np.int32, width=np.int32) as writer:

        def flush() -> None:
            if sizes:
                height, width = np.array(sizes, np.int32).T
                writer.append(height=height, width=width)
                sizes.clear()

        for row, size in enumerate(found):
            if isinstance(size, BadRecord):
                counts[size.reason] += 1
                lines.append(_line(source, row, size))
            sizes.append((0, 0) if isinstance(size, BadRecord) else size)
            if len(sizes) == CHUNK:
                flush()
        flush()
        writer.meta["faults"] = {reason: counts[reason] for reason in REASONS if counts[reason]}
        if lines:
            writer.write_text("faults.jsonl", "".join(lines))


def _listed(folder: epath.Path) -> dict[int, Found]:
    """{image: what is wrong with it} as a table of sizes lists it."""
    lines = map(json.loads, (folder / "faults.jsonl").read_text().splitlines())
    return {line["row"]: BadRecord(line["reason"], line["detail"]) for line in lines}


def _line(source: Source, i: int, error: BadRecord) -> str:
    identity = source.identity(i)
    return json.dumps({"row": i, "identity": identity, "reason": error.reason, "detail": error.detail}) + "\n"
