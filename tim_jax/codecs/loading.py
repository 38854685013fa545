"""Loads published weights (safetensors with their config.json) into a Flax module.

Modules have the names that their parameters have in the files, dots included, so that the path of a parameter, joined
by dots, is its published name. What remains to convert is the last part of the name (LEAVES), the order of a kernel's
axes, and names in files of other versions (Kind.renames).
"""

import contextlib
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from tim_jax.codecs import configs, packaged, tensors
from tim_jax.system.user_errors import few

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
FLOATS = ("F64", "F32", "F16", "BF16")
SHOWN = 4  # names that an error shows of each sort
STEMS = ("model", "diffusion_pytorch_model")  # of the files that published folders hold


Renames = Sequence[tuple[str, str | None]]


class Kind(NamedTuple):
    """A family of published models.

    Attributes:
        module: maps (config, dtype) to a Flax module with a method `example` that returns small inputs.
        config: maps (config.json as a dict, its path) to a frozen dataclass.
        renames: (regular expression, replacement) pairs that turn any published name into the one used here, applied in
            this order; a replacement None means that the parameter is not used. A function of the config may give them.
    """

    module: Callable[[Any, Any], nn.Module]
    config: Callable[[Mapping[str, Any], str], Any]
    renames: Renames | Callable[[Any], Renames] = ()


def load(path: str | pathlib.Path, kinds: Mapping[str, Kind], dtype=jnp.float32) -> tuple[nn.Module, dict]:
    """Loads a published model.

    Args:
        path: a folder with config.json and safetensors, whole or in shards with their index; or one safetensors file
            beside its config.json; or either on the hub, as hf://owner/repository; or a name in `packaged.PACKAGES`.
        kinds: the kinds of models that are accepted, by the `_class_name` or `model_type` in config.json.
        dtype: float32 or bfloat16, of parameters and computation.

    Returns:
        (module, parameters). The parameters are NumPy arrays, not placed on any device yet.

    Raises:
        ValueError: with one line that names the file and what is wrong with it.
    """
    path = packaged.local(path)
    module, kind = _described(path, kinds, dtype)
    renames = kind.renames(module.config) if callable(kind.renames) else kind.renames
    return module, read_parameters(find(path)[1], shapes_of(module), renames, dtype)


def describe(path: str | pathlib.Path, kinds: Mapping[str, Kind], dtype=jnp.float32) -> nn.Module:
    """Returns the module that config.json describes, without parameters; arguments and errors are those of `load`."""
    return _described(packaged.local(path), kinds, dtype)[0]


def _described(path: pathlib.Path, kinds: Mapping[str, Kind], dtype: Any) -> tuple[nn.Module, Kind]:
    config_file = find(path)[0] / "config.json"
    values = configs.read(config_file)
    name: Any = values.get("_class_name", values.get("model_type"))
    if name not in kinds:
        raise ValueError(f"{config_file}: is that of {name!r}; known here are {', '.join(kinds)}")
    return kinds[name].module(kinds[name].config(values, str(config_file)), dtype), kinds[name]


def shapes_of(module: nn.Module) -> dict:
    """Returns the parameters of a module as `jax.ShapeDtypeStruct`s; nothing is computed."""
    return jax.eval_shape(module.init, jax.random.key(0), *module.example())["params"]


def find(path: pathlib.Path) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """Returns (folder, safetensors files) of a published model. Raises ValueError that says what is missing."""
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError(f"{path}: must be a folder with config.json and safetensors, or a .safetensors file")
        return path.parent, [path]
    if not path.is_dir():
        raise ValueError(f"{path}: is neither a folder nor a file on this machine")
    for stem in STEMS:
        index = path / f"{stem}.safetensors.index.json"
        if index.exists():
            shards = configs.read(index).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
                raise ValueError(f"{index}: has no weight_map from names to files")
            return path, [path / name for name in sorted(set(shards.values()))]
        if (path / f"{stem}.safetensors").exists():
            return path, [path / f"{stem}.safetensors"]
    wanted = " or ".join(f"{stem}.safetensors" for stem in STEMS)
    raise ValueError(f"{path}: has no {wanted}; files in other forms (.bin, .pt, .msgpack) are not read")


def read_parameters(files: Sequence[pathlib.Path], shapes: Mapping, renames: Renames = (), dtype=jnp.float32) -> dict:
    """Reads parameters from safetensors files.

    Args:
        files: the files, which together hold every parameter once.
        shapes: a nested dict of leaves with a shape, as the module has its parameters.
        renames: see `Kind`.
        dtype: of the parameters that are returned.

    Returns:
        A nested dict of NumPy arrays like `shapes`.

    Raises:
        ValueError: naming a file that is truncated or of another kind, or the first few parameters that are missing,
            unknown, of another shape or not of floating point.
    """
    found: dict[str, tuple[Any, str]] = {}
    for file in files:
        handle = opened(file)
        for name in handle.keys():
            here = renamed(name, renames)
            if here in found:
                raise ValueError(f"{file}: {name} is there twice, under two names")
            if here is not None:
                found[here] = (handle, name)
    wanted = {".".join((*path[:-1], LEAVES.get(path[-1], path[-1]))): path for path in flatten_dict(shapes)}
    leaves = flatten_dict(shapes)
    _check(files, found, {name: _published_shape(path, leaves[path].shape) for name, path in wanted.items()})
    params = {}
    for name, path in wanted.items():
        handle, there = found[name]
        array = handle.get_tensor(there)
        if path[-1] == "kernel":
            array = array.transpose(*range(2, array.ndim), 1, 0)
        params[path] = np.ascontiguousarray(array, dtype)
    return unflatten_dict(params)


def opened(file: pathlib.Path) -> Any:
    """Opens one safetensors file of a published folder (see `tensors.open_safetensors`). Raises ValueError."""
    if not file.exists():
        raise ValueError(f"{file}: is not there, although the index beside it names it")
    return tensors.open_safetensors(file)


def renamed(name: str, renames: Renames) -> str | None:
    """Returns the name used here of a published name, None if the parameter is not used."""
    for pattern, replacement in renames:
        if replacement is None and re.search(pattern, name):
            return None
        name = re.sub(pattern, replacement, name) if replacement is not None else name
    return name


def listed(faults: Mapping[str, Sequence[str]]) -> str:
    """Returns lists of names as one line with the first few of each: "missing: a, b and 7 more; unknown: c"."""
    return "; ".join(f"{fault}: {few(names, SHOWN)}" for fault, names in faults.items() if names)


def exactly(dtype) -> contextlib.AbstractContextManager:
    """Returns a context in which float32 is multiplied as float32, even on accelerators that round by default."""
    return jax.default_matmul_precision("highest") if dtype == jnp.float32 else contextlib.nullcontext()


def _published_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[-1], shape[-2], *shape[:-2]) if path[-1] == "kernel" else tuple(shape)


def _check(files, found, wanted):
    slices = {name: handle.get_slice(there) for name, (handle, there) in found.items()}
    shared = sorted(wanted.keys() & found.keys())
    shapes = {name: tuple(slices[name].get_shape()) for name in shared}
    dtypes = {name: slices[name].get_dtype() for name in shared}
    faults = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unknown": sorted(found.keys() - wanted.keys()),
        "misshapen": [f"{n} {shapes[n]} instead of {wanted[n]}" for n in shared if shapes[n] != wanted[n]],
        "not floating point": [f"{n} {dtypes[n]}" for n in shared if dtypes[n] not in FLOATS],
    }
    if any(faults.values()):
        where = files[0] if len(files) == 1 else f"{files[0].parent} ({len(files)} files)"
        raise ValueError(f"{where}: does not fit its config.json: {listed(faults)}")
