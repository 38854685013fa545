"""Files as PyTorch writes them, and as somebody could forge them, made without PyTorch."""

import collections
import io
import pickle
import struct
import zipfile

from tim_jax.codecs import tensors


class Global:
    """Pickled as a name of a module, whatever it is."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __reduce__(self):
        raise AssertionError("pickled by Pickler.save_global")


class Call:
    """Pickled as a call of a Global."""

    def __init__(self, function, *args):
        self.function, self.args = function, args


class Stored:
    """Pickled as PyTorch pickles a storage; `more` is what old files say of a storage that is a view of another."""

    def __init__(self, kind, name, count, *more):
        self.key = ("storage", Global("torch", kind), name, "cpu", count, *more)


class Pickler(pickle._Pickler):
    """Writes what PyTorch writes from Globals, Calls and Stored."""

    def persistent_id(self, value):
        return value.key if isinstance(value, Stored) else None

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Global):
            return self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
        if isinstance(value, Call):
            return self.save_reduce(value.function, value.args)
        return super().save(value, save_persistent_id)

    def save_reduce(self, func, args, *rest, **options):
        if not isinstance(func, Global):
            return super().save_reduce(func, args, *rest, **options)
        self.save(func)
        self.save(args)
        return self.write(pickle.REDUCE)


KINDS = {"float32": "FloatStorage", "bfloat16": "BFloat16Storage", "float16": "HalfStorage", "int64": "LongStorage"}


def view(stored, offset, shape, strides):
    """A tensor as PyTorch pickles it."""
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, stored, offset, shape, strides, False, collections.OrderedDict())


def tensor(name, array):
    stored = Stored(KINDS[str(array.dtype)], name, array.size)
    return view(stored, 0, array.shape, tuple(step // array.itemsize for step in array.strides))


def _pickled(content):
    data = io.BytesIO()
    Pickler(data, 2).dump(content)
    return data.getvalue()


def write_archive(path, content, storages, root="archive"):
    """A file as torch.save writes it. storages: {name: bytes}."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{root}/data.pkl", _pickled(content))
        file.writestr(f"{root}/byteorder", "little")
        for name, values in storages.items():
            file.writestr(f"{root}/data/{name}", values)
        file.writestr(f"{root}/version", "3\n")


def write_old(path, content, storages, wide=4):
    """The same as PyTorch before 1.6 wrote it. wide: bytes of a value."""
    first = [pickle.dumps(value, 2) for value in (tensors.OLD_MAGIC, 1001, {"little_endian": True})]
    sized = [struct.pack("<q", len(values) // wide) + values for values in storages.values()]
    path.write_bytes(b"".join([*first, _pickled(content), pickle.dumps(list(storages), 2), *sized]))


WRITERS = [write_archive, write_old]


def save_torch(path, state):
    """A file of arrays {name: array}."""
    content = {name: tensor(str(i), array) for i, (name, array) in enumerate(state.items())}
    write_archive(path, content, {str(i): array.tobytes() for i, array in enumerate(state.values())})
