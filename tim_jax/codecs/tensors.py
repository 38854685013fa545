"""The one reader of files of weights: safetensors, npz and PyTorch files, of which nothing is ever executed.

A PyTorch file (.pth, .pt, .bin) is a pickle with raw storages beside it, and a pickle may name any function of any
module and have it called. Here the only names that it may use are tensors, their storages and ordered dictionaries, and
what they stand for is made in this file. Both layouts are read: the zip archive of PyTorch 1.6 and later, and the one
that came before it.
"""

import math
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from tim_jax.codecs.pickles import PlainUnpickler, ordered
from tim_jax.system import archives, files

# Types of the values in PyTorch's storages.
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
OLD_MAGIC = 0x1950A86A20F9469CFC6C  # the first number in a file from before PyTorch 1.6, pickled

Choose: TypeAlias = Callable[[list[str]], Mapping[str, str]]  # names of all arrays -> {one to read: what it is called}


def read(path: Any, choose: Choose | None = None) -> dict[str, np.ndarray]:
    """Reads all arrays of a file of weights, or some of them.

    Args:
        path: a .safetensors, .npz, .pth, .pt, .ckpt or .bin file, at any place that epath knows. A PyTorch file must
            hold one flat dictionary of tensors, or, with `choose`, dictionaries in dictionaries, whatever else is in
            them.
        choose: says which arrays are read, and what they are called; their names in the file are those of its
            dictionaries, joined by dots. By default all, as they are called there.

    Returns:
        {name: array}. The arrays of a PyTorch file are read-only, and those that share a storage there share it here.

    Raises:
        ValueError: in one line that names the file, if it is missing, truncated, damaged or of another kind, if it
            holds anything but arrays, if it asks for anything to be run, or whatever `choose` raises.
    """
    path = epath.Path(path).expanduser()
    if not path.exists():
        raise ValueError(f"{path}: there is no such file")
    if path.suffix not in READERS:
        raise ValueError(f"{path}: weights must be in a file of {', '.join(READERS)}")
    return READERS[path.suffix](path, choose)


def open_safetensors(path: Any) -> Any:
    """Opens a local safetensors file and checks its header against its length, without reading the arrays.

    Args:
        path: a file on this machine.

    Returns:
        A handle with `keys()`, `get_slice(name)` and `get_tensor(name)`, the last a NumPy array.

    Raises:
        ValueError: in one line that names the file, if it is truncated or of another kind.
    """
    try:
        return safetensors.safe_open(path, "numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise _damaged(path, "safetensors file", error) from None


def _damaged(path: Any, kind: str, error: Exception) -> ValueError:
    return ValueError(f"{path}: is truncated or no {kind} ({error}); fetch it again")


def _chosen(path: Any, choose: Choose | None, names: Iterable[str]) -> Mapping[str, str]:
    names = list(names)
    try:
        return choose(names) if choose else {name: name for name in names}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_safetensors(path: epath.Path, choose: Choose | None) -> dict[str, np.ndarray]:
    if files.is_local(path):
        handle = open_safetensors(path)
        return {own: handle.get_tensor(name) for name, own in _chosen(path, choose, handle.keys()).items()}
    try:
        arrays = safetensors.numpy.load(path.read_bytes())
    except (safetensors.SafetensorError, OSError) as error:
        raise _damaged(path, "safetensors file", error) from None
    return {own: arrays[name] for name, own in _chosen(path, choose, arrays).items()}


def _read_npz(path: epath.Path, choose: Choose | None) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:
            archives.check(file)
            with np.load(file, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays.files}
    except ValueError as error:  # of object arrays, which only a pickle could make
        raise ValueError(f"{path}: is not read: {error}") from None
    except Exception as error:  # whatever a damaged archive leads to
        raise _damaged(path, "npz file", error) from None
    return {own: found[name] for name, own in _chosen(path, choose, found).items()}


def _read_torch(path: epath.Path, choose: Choose | None) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:
            is_archive = file.read(2) == b"PK"
            file.seek(0)
            load = _load_archive if is_archive else _load_old
            return load(file, choose)
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, "PyTorch file", error) from None
    except ValueError as error:
        raise ValueError(f"{path}: is not read: {error}") from None
    except Exception as error:  # whatever a damaged or made-up pickle leads to
        raise ValueError(f"{path}: is not read: its pickle is broken ({type(error).__name__}: {error})") from None


READERS: Mapping[str, Callable[[epath.Path, Choose | None], dict[str, np.ndarray]]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".ckpt": _read_torch,
    ".bin": _read_torch,
}


class _Kind(NamedTuple):
    """The type of a storage's values, which stands for a class such as torch.FloatStorage."""

    dtype: Any


class _Storage(NamedTuple):
    """A storage that a pickle speaks of: `size` values of one type, whose bytes lie elsewhere in the file."""

    dtype: np.dtype
    name: str
    size: int


class _View(NamedTuple):
    """A tensor that a pickle speaks of: where its values lie in a storage, in numbers of values."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Options:
    """Stands for argparse.Namespace, by which checkpoints of training say how they were made; it keeps nothing."""


class _Unpickler(PlainUnpickler):
    """An unpickler for which tensors, storages, ordered dictionaries and options are all that there is."""

    storages: dict[str, _Storage]
    made = (_Options,)

    def __init__(self, stream: IO[bytes]):
        super().__init__(stream)
        self.storages = {}

    def view(self, storage, offset, shape, strides, *_):
        """Stands for torch._utils._rebuild_tensor_v2."""
        if not isinstance(storage, _Storage) or any(type(number) is not int for number in (offset, *shape, *strides)):
            raise ValueError("it holds a tensor whose place is not given in whole numbers")
        return _View(storage, offset, tuple(shape), tuple(strides))

    def parameter(self, tensor, *_):
        """Stands for torch._utils._rebuild_parameter."""
        return tensor

    def find_class(self, module, name):
        """Returns what a name stands for. Raises ValueError for all but the few that are known."""
        known = {
            ("collections", "OrderedDict"): ordered,
            ("torch._utils", "_rebuild_tensor_v2"): self.view,
            ("torch._utils", "_rebuild_parameter"): self.parameter,
            ("argparse", "Namespace"): _Options,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and name in DTYPES:
            return _Kind(DTYPES[name])
        raise ValueError(f"it asks for {module}.{name}, which no file of weights needs; it is not run")

    def persistent_load(self, pid):
        """Returns the storage that a tensor speaks of. Raises ValueError for anything else."""
        kind, values, name, _, size, *view_of = pid
        known = (
            kind == "storage" and isinstance(values, _Kind) and type(name) is str and type(size) is int and size >= 0
        )
        if not known or any(part is not None for part in view_of):
            raise ValueError("it holds something else than tensors")
        return self.storages.setdefault(str(name), _Storage(np.dtype(values.dtype), str(name), size))


def _load_archive(file: IO[bytes], choose: Choose | None) -> dict[str, np.ndarray]:
    """The chosen arrays of a zip archive as PyTorch writes it; no storage but theirs is read."""
    archives.check(file, stored=True)
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError("it is a zip archive, but not one of PyTorch")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("it was written on a machine of the other byte order")
        with archive.open(pickles[0]) as stream:
            views = _views(_Unpickler(stream).load(), choose)
        stored = {name: archive.read(f"{root}data/{name}") for name in {view.storage.name for view in views.values()}}
        return {name: _array(name, view, stored) for name, view in views.items()}


def _load_old(file: IO[bytes], choose: Choose | None) -> dict[str, np.ndarray]:
    """The same of a file from before PyTorch 1.6: pickles one after the other, then every storage with its size."""
    length = file.seek(0, 2)
    file.seek(0)
    magic, _, system = (_Unpickler(file).load() for _ in range(3))
    if magic != OLD_MAGIC:
        raise ValueError("it is no file of PyTorch")
    if not system.get("little_endian", True):
        raise ValueError("it was written on a machine of the other byte order")
    unpickler = _Unpickler(file)
    content, names, stored = unpickler.load(), _Unpickler(file).load(), {}
    for name in names:
        storage = unpickler.storages[name]
        size = int(np.frombuffer(file.read(8), "<i8")[0])
        if size != storage.size:
            raise ValueError(f"storage {name} has {size} values, not {storage.size}")
        if size * storage.dtype.itemsize > length:
            raise EOFError(f"storage {name} is not whole")
        stored[name] = file.read(size * storage.dtype.itemsize)
    return {name: _array(name, view, stored) for name, view in _views(content, choose).items()}


def _views(content: Any, choose: Choose | None) -> dict[str, _View]:
    """{name: view} of the chosen tensors of what a pickle holds."""
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not a dictionary of tensors")
    if choose:
        found = _joined(content)
        return {own: found[name] for name, own in choose(list(found)).items()}
    others = [str(name) for name, value in content.items() if not isinstance(value, _View)]
    if others:
        raise ValueError(f"it holds things that are no tensors: {', '.join(others[:4])}")
    return {str(name): view for name, view in content.items()}


def _joined(content: Mapping[Any, Any], prefix: str = "") -> dict[str, _View]:
    """All tensors of dictionaries in dictionaries, their names joined by dots."""
    found: dict[str, _View] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            found |= _joined(value, f"{prefix}{name}.")
        elif isinstance(value, _View):
            found[f"{prefix}{name}"] = value
    return found


def _array(name: str, view: _View, stored: Mapping[str, bytes]) -> np.ndarray:
    storage, offset, shape, strides = view
    data, wide = stored[storage.name], storage.dtype.itemsize
    if len(data) // wide != storage.size:
        raise ValueError(f"storage {storage.name} has {len(data) // wide} values, not {storage.size}")
    # Offset and strides come from the file: nothing outside of its own storage may be read.
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    beyond = 0 not in shape and (last >= storage.size or math.prod(shape) > storage.size)  # stride 0 shows one as many
    if min((offset, *shape, *strides)) < 0 or beyond:
        raise ValueError(f"{name}, of shape {shape}, reaches beyond its storage of {storage.size} values")
    return np.ndarray(shape, storage.dtype, data, offset * wide, tuple(step * wide for step in strides))
