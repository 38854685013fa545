"""Parquet files with a column `image`: bytes, or a struct with `bytes`.

Other columns that are read are `label`, and `captions`, `caption` or `text`. A row is read with its row group, and the
row groups that were read last stay in memory.
"""

import dataclasses
import functools
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath

from tim_jax.data.bad_records import BadRecord
from tim_jax.data.sources.base import EncodedImages, Location, Raw, checked_label, digest
from tim_jax.data.sources.tar import state_of
from tim_jax.data.splits import files_of_split

TEXTS = ("captions", "caption", "text")
MEMORY = 2**29  # bytes of row groups that stay in memory
LARGE = 2**23  # bytes of a row group above which reading one row at a time is slow
ROWS_AT_ONCE = 64  # pyarrow reads no more than 2 GiB of a struct at once


class _Recent:
    """The row groups that were read last, up to MEMORY; threads share them."""

    def __init__(self) -> None:
        self._lock, self._found, self._bytes = threading.Lock(), OrderedDict[int, list[Any]](), 0

    def get(self, number: int, read: Callable[[], list[Any]]) -> list[Any]:
        """The batches that `read` gives, or gave for this row group."""
        with self._lock:
            if number in self._found:
                self._found.move_to_end(number)
                return self._found[number]
        batches = read()
        with self._lock:
            if number not in self._found:
                self._found[number], self._bytes = batches, self._bytes + _bytes(batches)
            while self._bytes > MEMORY and len(self._found) > 1:
                self._bytes -= _bytes(self._found.popitem(last=False)[1])
        return batches


def _bytes(batches: list[Any]) -> int:
    return sum(batch.nbytes for batch in batches)


def _row(batches: list[Any], row: int) -> dict[str, Any]:
    """The values of a row by column; {} where no column is read."""
    for batch in batches:
        if row < len(batch):
            return {name: batch.column(name)[row].as_py() for name in batch.schema.names}
        row -= len(batch)
    return {}


class _Group(NamedTuple):
    """A row group: which file it is in, its number there, and its bytes. -1 is the number in a file that is none."""

    shard: int
    number: int
    bytes: int = 0


@dataclasses.dataclass(frozen=True)
class ParquetSource(EncodedImages):
    """The rows of Parquet files. A file that cannot be opened counts as one bad record.

    Attributes:
        root: the file, or the folder of files.
        shards: the files that are read.
        num_classes: labels lie below it; 0 says that labels are not read.
        channels: channels of the images to make.
        with_captions: whether captions are read.
    """

    root: str
    shards: tuple[str, ...]
    num_classes: int = 0
    channels: int = 3
    with_captions: bool = True

    @functools.cached_property
    def _shards(self) -> list[epath.Path]:
        return [epath.Path(shard) for shard in self.shards]

    @functools.cached_property
    def _layout(self) -> tuple[list[_Group], np.ndarray, set[str]]:
        """(row groups, where each ends, columns found)."""
        import pyarrow
        import pyarrow.parquet

        groups: list[_Group] = []
        ends: list[int] = []
        names: set[str] = set()
        for shard, path in enumerate(self._shards):
            try:
                with path.open("rb") as file:
                    about = pyarrow.parquet.ParquetFile(file).metadata
            except (pyarrow.ArrowException, OSError):
                groups.append(_Group(shard, -1))
                ends.append(1)
                continue
            names |= {about.schema.column(i).path.split(".")[0] for i in range(about.num_columns)}
            for number in range(about.num_row_groups):
                groups.append(_Group(shard, number, about.row_group(number).total_byte_size))
                ends.append(about.row_group(number).num_rows)
        return groups, np.cumsum(ends), names

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        texts = [name for name in TEXTS if name in self._layout[2] and self.with_captions][:1]
        return ["image"] + texts + (["label"] if self.num_classes else [])

    @functools.cached_property
    def _recent(self) -> _Recent:
        return _Recent()

    @property
    def name(self) -> str:
        return epath.Path(self.root).name

    @property
    def captions(self) -> bool:
        return any(name in TEXTS for name in self.columns)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._class_names if self.num_classes else ()

    @functools.cached_property
    def _class_names(self) -> tuple[str, ...]:
        """What hubs write of the column of labels beside the schema of a file, () where there is nothing of it."""
        import pyarrow.parquet

        group = next((group for group in self._layout[0] if group.number >= 0), None)
        if group is None:
            return ()
        with self._shards[group.shard].open("rb") as file:
            written = (pyarrow.parquet.ParquetFile(file).schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        try:
            names = json.loads(written)["info"]["features"]["label"]["names"]
        except (ValueError, KeyError, TypeError):
            return ()
        return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        return None, None, self.channels

    def __len__(self) -> int:
        return int(self._layout[1][-1]) if len(self._layout[1]) else 0

    def _locate(self, i: int) -> tuple[int, int]:
        """(row group, row within it) of example i."""
        _, ends, _ = self._layout
        at = int(np.searchsorted(ends, i, "right"))
        return at, i - (int(ends[at - 1]) if at else 0)

    def identity(self, i: int) -> str:
        at, row = self._locate(i)
        group = self._layout[0][at]
        name = self._shards[group.shard].name
        return f"{name}:{group.number}[{row}]" if group.number >= 0 else name

    def stable_names(self, start: int, stop: int) -> list[str]:
        """Names of files with the row, whatever group it is in."""
        groups, first = self._layout[0], self._starts
        shards = (groups[self._locate(i)[0]].shard for i in range(start, stop))
        return [f"{self._shards[k].name}[{i - first[k]}]" for i, k in enumerate(shards, start)]

    @functools.cached_property
    def _starts(self) -> dict[int, int]:
        """The first example of each file."""
        groups, ends, _ = self._layout
        first: dict[int, int] = {}
        for group, begin in zip(groups, [0, *ends[:-1].tolist()], strict=True):
            first.setdefault(group.shard, begin)
        return first

    def raw(self, i: int, max_bytes: int = -1) -> Raw:
        import pyarrow

        at, row = self._locate(i)
        group = self._layout[0][at]
        if group.number < 0:
            raise BadRecord("shard", "not a Parquet file, or cut short")
        try:
            values = _row(self._recent.get(at, lambda: self._batches(group)), row)
        except FileNotFoundError as error:
            raise BadRecord("missing", str(error)) from None
        except (pyarrow.ArrowException, OSError) as error:
            raise BadRecord("shard", str(error).splitlines()[0][:200]) from None
        image = values.get("image")
        image = image.get("bytes") if isinstance(image, dict) else image
        if image is None:
            raise BadRecord("missing", "no image")
        if not isinstance(image, bytes):
            raise BadRecord("metadata", f"image is a {type(image).__name__}, must be bytes")
        texts = [values[name] for name in TEXTS if name in values]
        return Raw(image, values.get("label"), texts[0] if texts else None)

    @property
    def labels_at_hand(self) -> bool:
        return True

    def labels(self, examples: np.ndarray) -> np.ndarray:
        return self._labels[examples]

    @functools.cached_property
    def _labels(self) -> np.ndarray:
        """The column of labels, int64 (n,); -1 where there is none."""
        import pyarrow
        import pyarrow.parquet

        groups, ends, _ = self._layout
        rows = np.bincount([group.shard for group in groups], np.diff(ends, prepend=0), len(self._shards)).astype(int)
        found: list[int] = []
        for path, count in zip(self._shards, rows.tolist(), strict=True):
            try:
                with path.open("rb") as file:
                    column = pyarrow.parquet.ParquetFile(file).read(["label"], use_threads=False)["label"]
                found += [self._label(value) for value in column.to_pylist()]
            except (pyarrow.ArrowException, OSError, KeyError):
                found += [-1] * count
        return np.array(found, np.int64)

    def _label(self, value: Any) -> int:
        try:
            return checked_label(value, self.num_classes)
        except BadRecord:
            return -1

    def _batches(self, group: _Group) -> list[Any]:
        """A row group in batches of at most ROWS_AT_ONCE rows."""
        import pyarrow.parquet

        with self._shards[group.shard].open("rb") as file:
            opened = pyarrow.parquet.ParquetFile(file)
            columns = [name for name in self.columns if name in opened.schema_arrow.names]
            return list(opened.iter_batches(ROWS_AT_ONCE, [group.number], columns, use_threads=False))

    def warn_of_large_groups(self, key: str) -> None:
        """Says so where row groups are too large to be read for one row of each, and too many for the memory."""
        sizes = [group.bytes for group in self._layout[0]]
        if max(sizes) > LARGE and sum(sizes) > MEMORY:
            logging.warning(
                "%s is %r: up to %d MB are read for every image, which is slow; files with row groups of a few images "
                "are read faster, and docs/your_images.md says how to write them",
                key,
                self.root,
                max(sizes) // 10**6,
            )

    def fingerprint(self) -> str:
        left = ("captions left",) if not self.with_captions and self._layout[2] & set(TEXTS) else ()
        return digest(
            "parquet", self.root, state_of(self._shards, epath.Path(self.root)), self.num_classes, self.channels, *left
        )


def open_parquet(at: Location) -> ParquetSource:
    """Opens the rows of Parquet files.

    Args:
        at: its path is a .parquet file, or a folder of such files, see `splits.files_of_split`.

    Raises:
        ValueError: there are no such files or no such part, they have no rows, or they have no column `image`.
    """
    shards = tuple(str(path) for path in files_of_split(at, (".parquet",)))
    source = ParquetSource(str(at.root), shards, at.num_classes, at.channels, at.captions)
    if not len(source):
        raise ValueError(f"{at.key} is {at.path!r}; its files must hold at least one row")
    found = source._layout[2]
    if found and "image" not in found:
        raise ValueError(f"{at.key} is {at.path!r}; among its columns {', '.join(sorted(found))} must be 'image'")
    source.warn_of_large_groups(at.key)
    return source
