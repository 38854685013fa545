"""Parquet files with a column `image`: bytes, or a struct with `bytes`; beside it `label`, and `captions`, `caption` or
`text`. A row is read with its whole row group, of which the last few are kept, so row groups should be small."""

import dataclasses
import functools
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
from etils import epath

from tim_jax.data.faults import BadRecord
from tim_jax.data.sources.base import Location, Raw, Readable, digest
from tim_jax.data.sources.tar import shards_of, state_of

TEXTS = ("captions", "caption", "text")
GROUPS_KEPT = 8


@dataclasses.dataclass(frozen=True)
class ParquetSource(Readable):
    """root: the file, or the folder of files. num_classes: labels lie below it; 0: no labels. channels: of the images
    to make. A file that cannot be opened counts as one bad row."""

    root: str
    num_classes: int = 0
    channels: int = 3

    @functools.cached_property
    def _shards(self) -> list[epath.Path]:
        return shards_of(epath.Path(self.root), (".parquet",))

    @functools.cached_property
    def _layout(self) -> tuple[list[tuple[int, int]], np.ndarray, list[str]]:
        """([(shard, row group)], where each ends, columns to read); row group -1: a file that cannot be opened."""
        import pyarrow
        import pyarrow.parquet

        groups, ends, names = [], [], set()
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
        if names and "image" not in names:
            found = ", ".join(sorted(names))
            raise ValueError(f"data.path is {self.root!r}; it has columns {found}, must have 'image'")
        texts = [name for name in TEXTS if name in names][:1]
        columns = ["image"] + texts + (["label"] if self.num_classes else [])
        return groups, np.cumsum(ends), columns

    @functools.cached_property
    def _kept(self) -> tuple[threading.Lock, OrderedDict]:
        return threading.Lock(), OrderedDict()

    @property
    def name(self) -> str:
        return epath.Path(self.root).name

    @property
    def captions(self) -> bool:
        return any(name in TEXTS for name in self._layout[2])

    @property
    def image_shape(self) -> tuple[None, None, int]:
        return None, None, self.channels

    def __len__(self) -> int:
        return int(self._layout[1][-1]) if len(self._layout[1]) else 0

    def _place(self, i: int) -> tuple[int, int, int]:
        """(shard, row group, row within it)."""
        groups, ends, _ = self._layout
        at = int(np.searchsorted(ends, i, "right"))
        return *groups[at], i - (int(ends[at - 1]) if at else 0)

    def identity(self, i: int) -> str:
        shard, group, row = self._place(i)
        return f"{self._shards[shard].name}:{group}[{row}]" if group >= 0 else self._shards[shard].name

    def _group(self, shard: int, group: int) -> Any:
        import pyarrow
        import pyarrow.parquet

        lock, kept = self._kept
        with lock:
            if (shard, group) in kept:
                kept.move_to_end((shard, group))
                return kept[shard, group]
        try:
            with self._shards[shard].open("rb") as file:
                opened = pyarrow.parquet.ParquetFile(file)
                columns = [name for name in self._layout[2] if name in opened.schema_arrow.names]
                read = opened.read_row_group(group, columns, use_threads=False)
        except FileNotFoundError as error:
            raise BadRecord("missing", str(error)) from None
        except (pyarrow.ArrowException, OSError) as error:
            raise BadRecord("shard", str(error).splitlines()[0][:200]) from None
        with lock:
            kept[shard, group] = read
            while len(kept) > GROUPS_KEPT:
                kept.popitem(last=False)
        return read

    def raw(self, i: int, most: int = -1) -> Raw:
        shard, group, row = self._place(i)
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

    def fingerprint(self) -> str:
        return digest("parquet", self.root, state_of(self._shards), self.num_classes, self.channels)


def open_parquet(at: Location) -> ParquetSource:
    """The rows of a .parquet file, or of all of them in a folder. Raises ValueError."""
    source = ParquetSource(str(at.root), at.num_classes, at.channels)
    if not len(source):
        raise ValueError(f"data.path is {at.path!r}; its files hold no rows, must hold some")
    return source
