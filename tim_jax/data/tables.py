"""Tables on disk: named columns that are written as a stream, appear whole by one rename and open memory-mapped."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from tim_jax.system import caches


class Writer:
    """Appends to the columns of a new table, in `folder`; columns: name -> dtype. `meta` is written with them."""

    def __init__(self, folder: epath.Path, columns: dict[str, Any]):
        self.meta: dict[str, Any] = {}
        self._types = {name: np.dtype(dtype) for name, dtype in columns.items()}
        self._folder = folder
        self._files = {name: (folder / f"{name}.bin").open("wb") for name in columns}
        self._lengths = dict.fromkeys(columns, 0)

    def append(self, **values: Any) -> None:
        """Adds values, arrays (n,) or scalars, to the columns that the keywords name."""
        for name, value in values.items():
            value = np.atleast_1d(np.asarray(value, self._types[name]))
            self._files[name].write(value.tobytes())
            self._lengths[name] += len(value)

    def length(self, name: str) -> int:
        """How many values a column has so far."""
        return self._lengths[name]

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file beside the columns."""
        (self._folder / name).write_text(text)

    def close(self) -> None:
        """Ends the columns and writes what the table consists of."""
        for file in self._files.values():
            file.close()
        columns = {name: [self._types[name].str, length] for name, length in self._lengths.items()}
        (self._folder / "table.json").write_text(json.dumps({"columns": columns, "meta": self.meta}))


@contextlib.contextmanager
def writing(folder: epath.Path, **columns: Any) -> Iterator[Writer]:
    """Opens a Writer for a new table, which appears when the block ends; of several writers the first wins.

    Args:
        folder: the table's own folder, which is not there yet.
        **columns: name -> dtype.
    """
    unfinished = folder.parent / f"{folder.name}.unfinished-{uuid.uuid4().hex[:8]}"
    unfinished.mkdir(parents=True)
    try:
        writer = Writer(unfinished, columns)
        yield writer
        writer.close()
        try:
            unfinished.rename(folder)
        except OSError:
            if not (folder / "table.json").exists():
                raise
    finally:
        if unfinished.exists():
            unfinished.rmtree()


def discard(folder: epath.Path) -> None:
    """Deletes a table that no longer holds; who has it open goes on reading it."""
    gone = folder.parent / f"{folder.name}.gone-{uuid.uuid4().hex[:8]}"
    with contextlib.suppress(FileNotFoundError):  # another process was first
        folder.rename(gone)
        gone.rmtree()


class Table:
    """An open table: its columns, by name, are read-only arrays, memory-mapped where files are local.

    It stays where it is as long as this object lives, see caches.py.
    """

    def __init__(self, folder: epath.Path):
        self._hold = caches.used(folder)
        described = json.loads((folder / "table.json").read_text())
        self.meta = described["meta"]
        self._columns = {name: _column(folder / f"{name}.bin", *about) for name, about in described["columns"].items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._columns[name]


def _column(path: epath.Path, dtype: str, length: int) -> np.ndarray:
    if not length:
        return np.zeros(0, dtype)
    if os.path.exists(path):
        return np.memmap(path, dtype, "r", shape=(length,))
    return np.frombuffer(path.read_bytes(), dtype)


def exists(folder: epath.Path) -> bool:
    """Whether a whole table is in `folder`."""
    return (folder / "table.json").exists()


def text_at(table: Table, name: str, i: int) -> str:
    """The i-th text of a pair of columns: `name`, the UTF-8 bytes of all texts, and `name`_end, where each ends.

    Names of files that are not UTF-8 come back as Python has them, with surrogates.
    """
    ends = table[f"{name}_end"]
    start = int(ends[i - 1]) if i else 0
    return table[name][start : int(ends[i])].tobytes().decode(errors="surrogateescape")


def append_text(writer: Writer, name: str, text: str) -> None:
    """Adds a text to a pair of columns as `text_at` reads it."""
    encoded = np.frombuffer(text.encode(errors="surrogateescape"), np.uint8)
    writer.append(**{name: encoded})
    writer.append(**{f"{name}_end": writer.length(name)})
