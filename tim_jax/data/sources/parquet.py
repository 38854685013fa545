"""Parquet files with a column `image`: bytes, or a struct with `bytes`.

Other columns that are read are `label`, and `captions`, `caption` or `text`. An example is read with its whole row
group, and the last few row groups stay in memory, so row groups should be small.
"""

import dataclasses
import functools
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
from etils import epath

from tim_jax.data.bad_records import BadRecord
from tim_jax.data.sources.base import EncodedImages, Location, Raw, checked_label, digest
from tim_jax.data.sources.tar import require_shards, shards_in, state_of

TEXTS = ("captions", "caption", "text")
GROUPS_IN_MEMORY = 8


@dataclasses.dataclass(frozen=True)
class ParquetSource(EncodedImages):
    """The rows of Parquet files. A file that cannot be opened counts as one bad record.

    Attributes:
        root: the file, or the folder of files.
        num_classes: labels lie below it; 0 says that labels are not read.
        channels: channels of the images to make.
    """

    root: str
    num_classes: int = 0
    channels: int = 3

    @functools.cached_property
    def _shards(self) -> list[epath.Path]:
        return shards_in(epath.Path(self.root), (".parquet",))

    @functools.cached_property
    def _layout(self) -> tuple[list[tuple[int, int]], np.ndarray, set[str]]:
        """([(shard, row group)], where each ends, columns found); row group -1 is a file that cannot be opened."""
        import pyarrow
        import pyarrow.parquet

        groups: list[tuple[int, int]] = []
        ends: list[int] = []
        names: set[str] = set()
        for shard, path in enumerate(self._shards):
            try:
                with path.open("rb") as file:
                    about = pyarrow.parquet.ParquetFile(file).metadata
            except (pyarrow.ArrowException, OSError):
                groups.append((shard, -1))
                ends.append(1)
                continue
            names |= {about.schema.column(i).path.split(".")[0] for i in range(about.num_columns)}
            groups += [(shard, group) for group in range(about.num_row_groups)]
            ends += [about.row_group(group).num_rows for group in range(about.num_row_groups)]
        return groups, np.cumsum(ends), names

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        texts = [name for name in TEXTS if name in self._layout[2]][:1]
        return ["image"] + texts + (["label"] if self.num_classes else [])

    @functools.cached_property
    def _cache(self) -> tuple[threading.Lock, OrderedDict]:
        return threading.Lock(), OrderedDict()

    @property
    def name(self) -> str:
        return epath.Path(self.root).name

    @property
    def captions(self) -> bool:
        return any(name in TEXTS for name in self.columns)

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        return None, None, self.channels

    def __len__(self) -> int:
        return int(self._layout[1][-1]) if len(self._layout[1]) else 0

    def _locate(self, i: int) -> tuple[int, int, int]:
        """(shard, row group, row within it) of example i."""
        groups, ends, _ = self._layout
        at = int(np.searchsorted(ends, i, "right"))
        return *groups[at], i - (int(ends[at - 1]) if at else 0)

    def identity(self, i: int) -> str:
        shard, group, row = self._locate(i)
        return f"{self._shards[shard].name}:{group}[{row}]" if group >= 0 else self._shards[shard].name

    def _group(self, shard: int, group: int) -> Any:
        import pyarrow
        import pyarrow.parquet

        lock, cache = self._cache
        with lock:
            if (shard, group) in cache:
                cache.move_to_end((shard, group))
                return cache[shard, group]
        try:
            with self._shards[shard].open("rb") as file:
                opened = pyarrow.parquet.ParquetFile(file)
                columns = [name for name in self.columns if name in opened.schema_arrow.names]
                read = opened.read_row_group(group, columns, use_threads=False)
        except FileNotFoundError as error:
            raise BadRecord("missing", str(error)) from None
        except (pyarrow.ArrowException, OSError) as error:
            raise BadRecord("shard", str(error).splitlines()[0][:200]) from None
        with lock:
            cache[shard, group] = read
            while len(cache) > GROUPS_IN_MEMORY:
                cache.popitem(last=False)
        return read

    def raw(self, i: int, max_bytes: int = -1) -> Raw:
        shard, group, row = self._locate(i)
        if group < 0:
            raise BadRecord("shard", "not a Parquet file, or cut short")
        read = self._group(shard, group)
        values = {name: read.column(name)[row].as_py() for name in read.column_names}
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
        rows = np.bincount([shard for shard, _ in groups], np.diff(ends, prepend=0), len(self._shards)).astype(int)
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

    def fingerprint(self) -> str:
        return digest("parquet", self.root, state_of(self._shards), self.num_classes, self.channels)


def open_parquet(at: Location) -> ParquetSource:
    """Opens the rows of Parquet files.

    Args:
        at: its path is a .parquet file, or a folder of such files.

    Raises:
        ValueError: there are no such files, they have no rows, or they have no column `image`.
    """
    require_shards(at, (".parquet",))
    source = ParquetSource(str(at.root), at.num_classes, at.channels)
    if not len(source):
        raise ValueError(f"{at.key} is {at.path!r}; its files must hold at least one row")
    found = source._layout[2]
    if found and "image" not in found:
        raise ValueError(f"{at.key} is {at.path!r}; among its columns {', '.join(sorted(found))} must be 'image'")
    return source
