"""Tensors of a PyTorch file (.bin, .pt: a zip archive with a pickle and raw storages), nothing in it being executed.

A pickle may name any function of any module and have it called. Here the only names it may use are those of KNOWN,
which stand for tensors and ordered dictionaries, and what they make is made here.
"""

import collections
import io
import math
import pathlib
import pickle
import zipfile
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class Storage(NamedTuple):
    """Values of one type, in a row; data is None where a pickle speaks of the type alone."""

    dtype: Any
    data: bytes | None = None

    @property
    def count(self) -> int:
        return len(self.data) // np.dtype(self.dtype).itemsize


def _tensor(storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None):
    """A tensor as a view of its storage, which must hold it."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if math.prod(size) else offset - 1
    if min((offset, *size, *stride)) < 0 or last >= storage.count:
        raise ValueError(f"a tensor of shape {tuple(size)} does not fit its storage of {storage.count} values")
    wide = np.dtype(storage.dtype).itemsize
    return np.ndarray(tuple(size), storage.dtype, storage.data, offset * wide, tuple(step * wide for step in stride))


KNOWN = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, requires_grad, hooks: tensor,
    **{("torch", name): Storage(dtype) for name, dtype in DTYPES.items()},
}


class _Reader(pickle.Unpickler):
    """Reads the pickle of an archive; storages come from the archive's other entries."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self.archive, self.root, self.storages = archive, root, {}

    def find_class(self, module, name):
        if (module, name) not in KNOWN:
            raise ValueError(f"it asks for {module}.{name}, which no file of weights needs; it is not run")
        return KNOWN[module, name]

    def persistent_load(self, key):
        kind, storage, name, _, count = key
        if kind != "storage" or not isinstance(storage, Storage):
            raise ValueError("it holds something else than tensors")
        if name not in self.storages:
            values = Storage(storage.dtype, self.archive.read(f"{self.root}data/{name}"))
            if values.count != count:
                raise ValueError(f"storage {name} has {values.count} values, not {count}")
            self.storages[name] = values
        return self.storages[name]


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """{name: array} of a file that holds one flat dictionary of tensors. The arrays are read-only.

    Raises ValueError with one line that names the file if it is truncated, of an older form, holds something else, or
    asks for anything to be run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                raise ValueError("it is a zip archive, but not one of PyTorch")
            root = pickles[0].removesuffix("data.pkl")
            if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
                raise ValueError("it was written on a machine of the other byte order")
            found = _Reader(archive, root).load()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: is truncated or no zip archive of PyTorch ({error}); fetch it again") from None
    except ValueError as error:
        raise ValueError(f"{path}: is not read: {error}") from None
    except Exception as error:  # whatever a damaged or made-up pickle leads to
        raise ValueError(f"{path}: is not read: its pickle is broken ({type(error).__name__}: {error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds a {type(found).__name__}, not a dictionary of tensors")
    others = [str(name) for name, value in found.items() if not isinstance(value, np.ndarray)]
    if others:
        raise ValueError(f"{path}: holds things that are no tensors: {', '.join(others[:4])}")
    return {str(name): value for name, value in found.items()}
