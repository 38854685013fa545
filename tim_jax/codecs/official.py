"""Converts published weights to parameters of the networks here and back, by the tables of `codecs.names`.

Published weights are a flat dict of arrays by PyTorch name. Parameters here are a nested dict, in which all blocks are
stacked along a first axis. A network's table is the only difference between the two, but for parameters that the
published network does not have: their official name is their path here after OWN.

Arrays that a published file carries and that are no parameters here, such as fixed position embeddings, are `fixed`: on
the way in they are compared with what they must be, on the way out they are written as they must be.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from tim_jax.codecs.loading import listed
from tim_jax.codecs.names import NAMES, tim
from tim_jax.codecs.names.layouts import Row

OWN = "tim_jax."  # begins the names of parameters that the published network does not have

# What networks that were published with t alone have of r, and published files lack. While its output layer is zero, as
# it is at first, the interval's embedding leaves F as it is, unless it is a token.
INTERVAL, TOKENS = "delta_embedder", "delta_tokens"

TOLERANCE = 1e-5  # by which fixed arrays may differ, that others compute in float32

Arrays = Mapping[str, np.ndarray]
Flat = dict[str, np.ndarray]


def transposed(params) -> dict:
    """Exchanges rows and columns in the position embedding of TiM's parameters; twice changes nothing.

    RoPE turns the first half of a head's values by the row of a patch and the second half by its column, at the same
    frequencies. Queries and keys with these halves exchanged therefore give the same attention where rows and columns
    are exchanged. On square images the orders "row_major" and "official" (see networks/rope.py) differ by just that:
    parameters of one, transposed, are parameters of the other.

    Args:
        params: unboxed parameters, NumPy arrays.
    """
    return _unflatten({path: tim.turned(path, np.asarray(leaf)) for path, leaf in _flatten(params).items()})


def rows_of(network: str) -> Sequence[Row]:
    """The table of a network; that of TiM for a plugin's, as most of these are made of it."""
    return NAMES.get(network, NAMES["tim"])


def unpublished(paths: Iterable[str], network: str = "tim") -> list[str]:
    """The modules, sorted, of those parameters that the published network does not have; paths: of all of them."""
    known = {row.path for row in rows_of(network)}
    return sorted({path.partition("/")[0] for path in paths if path not in known})


def from_official(
    state: Arrays,
    template,
    network: str = "tim",
    fixed: Arrays | None = None,
    first: Callable[[list[str]], Arrays] | None = None,
) -> dict:
    """Converts official weights to parameters.

    Args:
        state: {official name: array}.
        template: unboxed parameters of the network to be filled, or their shapes from `jax.eval_shape`.
        network: whose table in `codecs.names` holds.
        fixed: {official name: array} of what files may carry beside parameters.
        first: paths -> {path: array} of parameters as they are at first, for those of the interval that `state` lacks;
            without it `state` must have them.

    Returns:
        Parameters with the values of `state` and the shapes and types of `template`.

    Raises:
        ValueError: if the depths differ, or naming the first arrays that are missing, unknown, of another shape, or
            fixed and of other values.
    """
    shapes, fixed = _flatten(template), fixed or {}
    blank = {path: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) for path, leaf in shapes.items()}
    expected = {name: array.shape for name, array in _named(blank, rows_of(network)).items()}
    of_interval = [path for path in shapes if _module(path) in (INTERVAL, TOKENS) and OWN + path in expected]
    new = [path for path in of_interval if first and OWN + path not in state]
    _check(state, {name: shape for name, shape in expected.items() if name.removeprefix(OWN) not in new}, fixed)
    params = dict(first(new)) if first and new else {}
    for row, start in _numbered(rows_of(network), shapes):
        shape, dtype = shapes[row.path].shape, shapes[row.path].dtype
        if "*" in row.official:
            numbers = range(start, start + shape[0])
            blocks = (row.layout.load(state[_name(row, number)], shape[1:]) for number in numbers)
            params[row.path] = np.stack([block.astype(dtype) for block in blocks])
        else:
            params[row.path] = np.ascontiguousarray(row.layout.load(state[row.official], shape), dtype)
    for path in shapes.keys() - params.keys():
        params[path] = np.ascontiguousarray(state[OWN + path], shapes[path].dtype)
    return _unflatten(params)


def to_official(params, network: str = "tim", fixed: Arrays | None = None) -> Flat:
    """Converts unboxed parameters to {official name: array in its official layout}, with the fixed arrays.

    An embedding of the interval that leaves F as it is, of a network that was published without, is left out.
    """
    arrays = {path: np.asarray(leaf) for path, leaf in _flatten(params).items()}
    state = _named(arrays, rows_of(network)) | dict(fixed or {})
    told = any(_module(p) == TOKENS or p.startswith(f"{INTERVAL}/out/") and a.any() for p, a in arrays.items())
    return {
        name: np.ascontiguousarray(array)
        for name, array in state.items()
        if told or not name.startswith(f"{OWN}{INTERVAL}/")
    }


def depth_of(state: Iterable[str]) -> int:
    """Returns the number of blocks in official weights, by their names."""
    numbers = [int(m[1]) for m in map(re.compile(r"blocks\.(\d+)\.").match, state) if m]
    return max(numbers, default=-1) + 1


def _numbered(rows: Iterable[Row], shapes: Mapping) -> list[tuple[Row, int]]:
    """The rows that a network has, each with the number of its first block."""
    counts: dict[str, int] = {}
    found = []
    for row in rows:
        if row.path in shapes:
            start = counts.get(row.official, 0)
            found.append((row, start))
            if "*" in row.official:
                counts[row.official] = start + shapes[row.path].shape[0]
    return found


def _name(row: Row, number: int) -> str:
    return row.official.replace("*", str(number))


def _named(arrays: Arrays, rows: Iterable[Row]) -> Flat:
    known = {row.path for row in rows}
    state = {OWN + path: array for path, array in arrays.items() if path not in known}
    for row, start in _numbered(rows, arrays):
        array = arrays[row.path]
        if "*" in row.official:
            state |= {_name(row, start + i): row.layout.save(block) for i, block in enumerate(array)}
        else:
            state[row.official] = row.layout.save(array)
    return state


def _check(state: Arrays, expected: Mapping[str, tuple[int, ...]], fixed: Arrays) -> None:
    if (depth := depth_of(state)) != (own := depth_of(expected)):
        odd = next(name for name in sorted(expected.keys() ^ state.keys()) if f"blocks.{min(depth, own)}." in name)
        raise ValueError(f"official weights have depth {depth}: the network has {own}; the first to differ is {odd}")
    found = {name: np.shape(array) for name, array in state.items()}
    shapes = {name: array.shape for name, array in fixed.items()}
    known = {**shapes, **expected}
    faults = {
        "missing": sorted(expected.keys() - found.keys()),
        "unknown": sorted(found.keys() - known.keys()),
        "misshapen": [
            f"{name} {found[name]} instead of {known[name]}"
            for name in sorted(known.keys() & found.keys())
            if found[name] != known[name]
        ],
    }
    if not any(faults.values()):
        different = [name for name in fixed if name in state and not _is_near(state[name], fixed[name])]
        faults = {"of other values than the network computes": different}
    if any(faults.values()):
        raise ValueError(f"official weights do not fit the network: {listed(faults)}")


def _is_near(array: np.ndarray, fixed: np.ndarray) -> bool:
    return bool(np.max(np.abs(np.asarray(array, np.float64) - fixed), initial=0) <= TOLERANCE)


def _module(path: str) -> str:
    return path.partition("/")[0]


def _flatten(tree, prefix=""):
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}/") if hasattr(value, "items") else {f"{prefix}{key}": value}
    return flat


def _unflatten(flat):
    tree = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = value
    return tree
