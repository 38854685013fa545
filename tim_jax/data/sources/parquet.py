"""Parquet files with a column `image`: bytes, or a struct with `bytes`.

Other columns that are read are `label`, and `captions`, `caption` or `text`. An image is read with the page that holds
it, whatever the size of its row group; the other columns are read by row group, and what was read last stays in memory.
"""

import dataclasses
import functools
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from tim_jax.data import parquet_pages
from tim_jax.data.bad_records import BadRecord
from tim_jax.data.sources.base import EncodedImages, Location, Raw, checked_label, digest
from tim_jax.data.sources.tar import state_of
from tim_jax.data.splits import files_of_split

TEXTS = ("captions", "caption", "text")
MEMORY = 2**29  # bytes that each kind of thing that was read may keep
SLOW = 2**23  # bytes that are decompressed for one image above which a warning says so
ROWS_AT_ONCE = 64  # of a column that is read whole: pyarrow reads no struct of more than 2 GiB at once


class _Recent:
    """What was read last, up to a number of bytes; threads share it."""

    def __init__(self) -> None:
        self._lock, self._found, self._bytes = threading.Lock(), OrderedDict[Any, tuple[Any, int]](), 0

    def get(self, key: Any, read: Callable[[], Any]) -> Any:
        """What `read` gives, or gave for this key."""
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key][0]
        value = read()
        size = _bytes(value)
        with self._lock:
            if key not in self._found:
                self._found[key], self._bytes = (value, size), self._bytes + size
            while self._bytes > MEMORY and len(self._found) > 1:
                _, (_, gone) = self._found.popitem(last=False)
                self._bytes -= gone
        return value


def _bytes(value: Any) -> int:
    """How much memory something that was read takes, about."""
    if isinstance(value, list | tuple):
        return sum(map(_bytes, value)) + 200
    if dataclasses.is_dataclass(value):
        return sum(_bytes(getattr(value, field.name)) for field in dataclasses.fields(value))
    return getattr(value, "nbytes", 32)


@dataclasses.dataclass(frozen=True)
class _Group:
    """A row group: which file it is in, its number there, and where its images are.

    The number is -1 for a file that cannot be opened, and the chunk None for images that are not stored in pages of
    bytes as `parquet_pages` reads them.
    """

    shard: int
    number: int
    chunk: parquet_pages.Chunk | None = None


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
                try:
                    chunk = parquet_pages.find_chunk(about, number, "image")
                except parquet_pages.Unsupported:
                    chunk = None
                groups.append(_Group(shard, number, chunk))
                ends.append(about.row_group(number).num_rows)
        return groups, np.cumsum(ends), names

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        texts = [name for name in TEXTS if name in self._layout[2] and self.with_captions][:1]
        return ["image"] + texts + (["label"] if self.num_classes else [])

    @functools.cached_property
    def _recent(self) -> dict[str, _Recent]:
        return {kind: _Recent() for kind in ("page", "group", "beside")}

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
        groups, ends, _ = self._layout
        first: dict[int, int] = {}  # of each file, where it starts
        for group, begin in zip(groups, [0, *ends[:-1].tolist()], strict=True):
            first.setdefault(group.shard, begin)
        shards = (groups[self._locate(i)[0]].shard for i in range(start, stop))
        return [f"{self._shards[k].name}[{i - first[k]}]" for i, k in enumerate(shards, start)]

    def raw(self, i: int, max_bytes: int = -1) -> Raw:
        import pyarrow

        at, row = self._locate(i)
        group = self._layout[0][at]
        if group.number < 0:
            raise BadRecord("shard", "not a Parquet file, or cut short")
        try:
            image = self._image(at, group, row)
            beside = self._beside(at, group)
            values = {name: beside.column(name)[row].as_py() for name in beside.column_names}
        except FileNotFoundError as error:
            raise BadRecord("missing", str(error)) from None
        except (pyarrow.ArrowException, OSError, *parquet_pages.DAMAGE) as error:
            raise BadRecord("shard", (str(error).splitlines() or [type(error).__name__])[0][:200]) from None
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

    def _image(self, at: int, group: _Group, row: int) -> Any:
        """The image of a row, by the page that holds it where its column allows."""
        if group.chunk is None:
            return self._whole(at, group, row)
        try:
            return self._value(at, group, group.chunk, row)
        except parquet_pages.Unsupported:
            return self._whole(at, group, row)

    def _value(self, at: int, group: _Group, chunk: parquet_pages.Chunk, row: int) -> bytes | None:
        """The image of a row of a column in pages. Raises Unsupported, or one of `parquet_pages.DAMAGE`."""
        recent = self._recent["page"]
        with self._shards[group.shard].open("rb") as file:
            column = recent.get(at, lambda: parquet_pages.Column.find(file, chunk))
            return column.value(file, row, lambda key, find: recent.get((at, key), find))

    def _whole(self, at: int, group: _Group, row: int) -> Any:
        """The image of a row, whatever it is, by reading those of its row group."""
        import pyarrow.parquet

        def read() -> list[Any]:
            with self._shards[group.shard].open("rb") as file:
                opened = pyarrow.parquet.ParquetFile(file)
                if "image" not in opened.schema_arrow.names:
                    return []
                return list(opened.iter_batches(ROWS_AT_ONCE, [group.number], ["image"], use_threads=False))

        batches = self._recent["group"].get(at, read)
        if not batches:
            return None
        for batch in batches:
            if row < len(batch):
                value = batch.column(0)[row].as_py()
                return value.get("bytes") if isinstance(value, dict) else value
            row -= len(batch)
        raise IndexError(row)

    def _beside(self, at: int, group: _Group) -> Any:
        """The table of the other columns of a row group."""
        import pyarrow.parquet

        def read() -> Any:
            with self._shards[group.shard].open("rb") as file:
                opened = pyarrow.parquet.ParquetFile(file)
                columns = [name for name in self.columns[1:] if name in opened.schema_arrow.names]
                return opened.read_row_group(group.number, columns, use_threads=False)

        return self._recent["beside"].get(at, read)

    def bytes_at_once(self) -> int:
        """How much of the first file has to be decompressed for an image, where it is more than the image; or 0."""
        group = next((group for group in self._layout[0] if group.number >= 0), None)
        if group is None:
            return 0
        import pyarrow.parquet

        with self._shards[group.shard].open("rb") as file:
            if group.chunk is None:
                return pyarrow.parquet.ParquetFile(file).metadata.row_group(group.number).total_byte_size
            if group.chunk.codec in parquet_pages.ONE_BY_ONE:
                return 0
            column = parquet_pages.Column.find(file, group.chunk)
        return max(page.size for page in (*column.pages, *filter(None, [column.dictionary])))

    def fingerprint(self) -> str:
        left = ("captions left",) if not self.with_captions and self._layout[2] & set(TEXTS) else ()
        return digest("parquet", self.root, state_of(self._shards), self.num_classes, self.channels, *left)


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
    try:
        large = source.bytes_at_once()
    except (parquet_pages.Unsupported, *parquet_pages.DAMAGE):
        large = 0  # bad records will say so
    if large > SLOW:
        logging.warning(
            "%s is %r: %d MB of its files are decompressed for every image; they are read faster if they are written "
            "anew with compression='none' (docs/your_images.md)",
            at.key,
            at.path,
            large // 10**6,
        )
    return source
