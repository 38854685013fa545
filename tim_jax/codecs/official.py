"""Converts published TiM weights to parameters of `networks.TiM` and back.

Published weights are a flat dict of arrays by PyTorch name, a linear weight being (out, in) and a convolution weight
(out, in, kh, kw). Parameters here are a nested dict, a kernel being (in ..., out ...), in which all blocks are stacked
along a first axis. TABLE is the only difference between the two, but for parameters that the published network does not
have: their official name is their path here after OWN.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """How the layout of an array changes.

    Attributes:
        load: maps (official array, shape here) to the array here.
        save: its inverse.
    """

    load: Callable
    save: Callable


SAME = Layout(lambda w, shape: w, lambda w: w)
FLAT = Layout(lambda w, shape: w.reshape(shape), lambda w: w.reshape(-1))
ONE_IN = Layout(lambda w, shape: w.T.reshape(shape), lambda w: w.reshape(w.shape[0], -1).T)
ONE_OUT = Layout(lambda w, shape: w.T.reshape(shape), lambda w: w.reshape(-1, w.shape[-1]).T)
PATCH = Layout(lambda w, shape: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))


def _linear(official, ours, layout=ONE_IN):
    return [(f"{official}.weight", f"{ours}/kernel", layout), (f"{official}.bias", f"{ours}/bias", FLAT)]


def _norm(official, ours):
    return [(f"{official}.weight", f"{ours}/scale", SAME), (f"{official}.bias", f"{ours}/bias", SAME)]


def _swiglu(official, ours):
    parts = {"fc1_g": "gate", "fc1_x": "up", "fc2": "down"}
    return [row for a, b in parts.items() for row in _linear(f"{official}.{a}", f"{ours}/{b}")]


# (official name with * for the number of a block, path here, layout). A network has some of these.
TABLE = [
    *_linear("x_embedder.proj", "patch", PATCH),
    *_linear("t_embedder.mlp.0", "t_embedder/in"),
    *_linear("t_embedder.mlp.2", "t_embedder/out"),
    *_linear("delta_embedder.mlp.0", "delta_embedder/in"),
    *_linear("delta_embedder.mlp.2", "delta_embedder/out"),
    ("y_embedder.embedding_table.weight", "label_embedder/table", SAME),
    *_norm("y_embedder.norm", "caption_embedder/norm"),
    *_swiglu("y_embedder.mlp", "caption_embedder/mlp"),
    *_swiglu("blocks.*.adaLN_modulation", "blocks/modulation"),
    *_linear("blocks.*.attn.qkv", "blocks/attn/qkv"),
    ("blocks.*.attn.qkv_d.weight", "blocks/attn/qkv_delta/kernel", ONE_IN),
    *_norm("blocks.*.attn.q_norm", "blocks/attn/q_norm"),
    *_norm("blocks.*.attn.k_norm", "blocks/attn/k_norm"),
    *_linear("blocks.*.attn.proj", "blocks/attn/out", ONE_OUT),
    *_linear("blocks.*.cross_attn.q", "blocks/cross/q"),
    *_linear("blocks.*.cross_attn.kv", "blocks/cross/kv"),
    *_norm("blocks.*.cross_attn.q_norm", "blocks/cross/q_norm"),
    *_norm("blocks.*.cross_attn.k_norm", "blocks/cross/k_norm"),
    *_linear("blocks.*.cross_attn.proj", "blocks/cross/out", ONE_OUT),
    *_swiglu("blocks.*.mlp", "blocks/mlp"),
    *_swiglu("final_layer.adaLN_modulation", "final/modulation"),
    *_linear("final_layer.linear", "final/linear"),
    *_linear("projector.0", "projector/in"),
    *_linear("projector.2", "projector/mid"),
    *_linear("projector.4", "projector/out"),
]


OWN = "tim_jax."  # begins the names of parameters that the published network does not have

# Where queries and keys have the K values of a head last -> how many of the parts before the heads (q, k, v or k, v)
# are queries or keys; 0 where there are no parts.
QUERIES_AND_KEYS = {
    "blocks/attn/qkv": 2,
    "blocks/attn/qkv_delta": 2,
    "blocks/attn/q_norm": 0,
    "blocks/attn/k_norm": 0,
    "blocks/cross/q": 0,
    "blocks/cross/kv": 1,
    "blocks/cross/q_norm": 0,
    "blocks/cross/k_norm": 0,
}


def transposed(params) -> dict:
    """Exchanges rows and columns in the position embedding of parameters; twice changes nothing.

    RoPE turns the first half of a head's values by the row of a patch and the second half by its column, at the same
    frequencies. Queries and keys with these halves exchanged therefore give the same attention where rows and columns
    are exchanged. On square images the orders "row_major" and "official" (see networks/rope.py) differ by just that:
    parameters of one, transposed, are parameters of the other.

    Args:
        params: unboxed parameters, NumPy arrays.
    """
    return _unflatten({path: _transposed(path, np.asarray(leaf)) for path, leaf in _flatten(params).items()})


def _transposed(path: str, leaf: np.ndarray) -> np.ndarray:
    module = path.rpartition("/")[0]
    if module not in QUERIES_AND_KEYS:
        return leaf
    exchanged = np.roll(leaf, leaf.shape[-1] // 2, axis=-1)
    if parts := QUERIES_AND_KEYS[module]:
        exchanged[..., parts:, :, :] = leaf[..., parts:, :, :]
    return exchanged


def unpublished(paths) -> list[str]:
    """The modules, sorted, of those parameters that the published network does not have; paths: of all of them."""
    known = {path for _, path, _ in TABLE}
    return sorted({path.partition("/")[0] for path in paths if path not in known})


def from_official(state: dict[str, np.ndarray], template) -> dict:
    """Converts official weights to parameters.

    Args:
        state: {official name: array}.
        template: unboxed parameters of the network to be filled, or their shapes from `jax.eval_shape`.

    Returns:
        Parameters with the values of `state` and the shapes and types of `template`.

    Raises:
        ValueError: if the depths differ, or naming every array that is missing, unknown or of another shape.
    """
    shapes = _flatten(template)
    blank = {path: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) for path, leaf in shapes.items()}
    _check_names(state, {name: array.shape for name, array in _flat_to_official(blank).items()})
    params = {}
    for official, path, layout in TABLE:
        if path not in shapes:
            continue
        shape, dtype = shapes[path].shape, shapes[path].dtype
        if "*" in official:
            blocks = (layout.load(state[official.replace("*", str(i))], shape[1:]) for i in range(shape[0]))
            params[path] = np.stack([block.astype(dtype) for block in blocks])
        else:
            params[path] = np.ascontiguousarray(layout.load(state[official], shape), dtype)
    for path in shapes.keys() - params.keys():
        params[path] = np.ascontiguousarray(state[OWN + path], shapes[path].dtype)
    return _unflatten(params)


def to_official(params) -> dict[str, np.ndarray]:
    """Converts unboxed parameters to {official name: array in its official layout}."""
    arrays = {path: np.asarray(leaf) for path, leaf in _flatten(params).items()}
    return {name: np.ascontiguousarray(array) for name, array in _flat_to_official(arrays).items()}


def depth_of(state: dict[str, np.ndarray]) -> int:
    """Returns the number of blocks in official weights, by their names."""
    numbers = [int(m[1]) for m in map(re.compile(r"blocks\.(\d+)\.").match, state) if m]
    return max(numbers, default=-1) + 1


def _flat_to_official(arrays):
    published = {path for _, path, _ in TABLE}
    state = {OWN + path: array for path, array in arrays.items() if path not in published}
    for official, path, layout in TABLE:
        if path in arrays and "*" in official:
            state |= {official.replace("*", str(i)): layout.save(block) for i, block in enumerate(arrays[path])}
        elif path in arrays:
            state[official] = layout.save(arrays[path])
    return state


def _check_names(state, expected):
    if depth_of(state) != depth_of(expected):
        raise ValueError(f"official weights have depth {depth_of(state)}: the network has {depth_of(expected)}")
    found = {name: np.shape(array) for name, array in state.items()}
    faults = {
        "missing": sorted(expected.keys() - found.keys()),
        "unknown": sorted(found.keys() - expected.keys()),
        "misshapen": [
            f"{name} {found[name]} instead of {expected[name]}"
            for name in sorted(expected.keys() & found.keys())
            if found[name] != expected[name]
        ],
    }
    if any(faults.values()):
        lines = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in faults.items() if names)
        raise ValueError(f"official weights do not fit the network: {lines}")


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
