"""Named arrays from files of weights: safetensors, npz, and PyTorch's pth without running what its pickle asks for."""

import collections
import math
import pickle
import zipfile
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

# Types of PyTorch's storages.
TYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
OLD_MAGIC = 0x1950A86A20F9469CFC6C  # the first number of files from before PyTorch 1.6, pickled


def read(path: Any) -> dict[str, np.ndarray]:
    """{name: array} of a .safetensors, .npz, .pth, .pt or .bin file.

    Raises ValueError, in one line that names the file, if it is missing, cut off, damaged, of another kind, or holds
    anything but arrays.
    """
    path = epath.Path(path).expanduser()
    if not path.exists():
        raise ValueError(f"{path}: there is no such file")
    readers = {".safetensors": _safetensors, ".npz": _npz, ".pth": _torch, ".pt": _torch, ".bin": _torch}
    if path.suffix not in readers:
        raise ValueError(f"{path}: weights must be in a file of {', '.join(readers)}")
    try:
        return readers[path.suffix](path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except (OSError, EOFError, KeyError, IndexError, TypeError, AttributeError, OverflowError,
            zipfile.BadZipFile, pickle.UnpicklingError, safetensors.SafetensorError) as error:  # fmt: skip
        raise ValueError(f"{path}: damaged or not complete ({type(error).__name__}: {error})") from None


def _safetensors(path):
    return safetensors.numpy.load(path.read_bytes())


def _npz(path):
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


class _Storage(NamedTuple):
    dtype: Any
    key: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Reader(pickle.Unpickler):
    """A pickle reader to whom dicts, tensors and storages are all there is."""

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, shape, strides)
        if module == "torch" and name in TYPES:
            return np.dtype(TYPES[name])
        raise ValueError(f"asks for {module}.{name}, which is not a weight; nothing of it was run")

    def persistent_load(self, pid):
        _, dtype, key, *_ = pid
        return _Storage(dtype, key)


def _torch(path):
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            file.seek(0)
            return _old_torch(file)
        with zipfile.ZipFile(file) as archive:
            (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            folder = pickled.removesuffix("data.pkl")
            with archive.open(pickled) as stream:
                found = _Reader(stream).load()
            return _arrays(found, lambda storage: archive.read(f"{folder}data/{storage.key}"))


def _old_torch(file):
    magic, _, _ = (_Reader(file).load() for _ in range(3))
    if magic != OLD_MAGIC:
        raise ValueError("not a file of PyTorch's")
    found = _Reader(file).load()
    keys = _Reader(file).load()
    types = {tensor.storage.key: tensor.storage.dtype for tensor in found.values() if isinstance(tensor, _Tensor)}
    stored = {}
    for key in keys:
        size = int(np.frombuffer(file.read(8), "<i8")[0]) * types[key].itemsize
        stored[key] = file.read(size)
        if len(stored[key]) != size:
            raise ValueError("damaged or not complete: it ends early")
    return _arrays(found, lambda storage: stored[storage.key])


def _arrays(found, stored):
    if not isinstance(found, dict):
        raise ValueError("holds no table of arrays")
    arrays = {}
    for name, tensor in found.items():
        if not isinstance(tensor, _Tensor):
            raise ValueError(f"{name!r} is not an array")
        data = np.frombuffer(stored(tensor.storage), tensor.storage.dtype)[tensor.offset :]
        # Strides come from the file: nothing outside of its own storage may be read.
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
        if math.prod(tensor.shape) and not 0 <= last < len(data) or min((*tensor.strides, *tensor.shape, 0)) < 0:
            raise ValueError(f"damaged or not complete: {name} reaches beyond its storage")
        strides = tuple(stride * data.itemsize for stride in tensor.strides)
        arrays[name] = np.lib.stride_tricks.as_strided(data, tensor.shape, strides, writeable=False).copy()
    return arrays
