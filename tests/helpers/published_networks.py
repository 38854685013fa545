"""Published networks with small random weights, and what the published code makes of them (tests/golden/net_*)."""

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from tim_jax.types import Query

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "table": "embedding_table.weight"}


@functools.cache
def answers(name):
    """The arrays of an .npz, images in our order of axes."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: np.moveaxis(a, 1, -1) if a.ndim == 4 else a for key, a in file.items()}


def queries(x, t, labels, dtype, r=None):
    """A group of examples in a type."""
    t = jnp.asarray(t, dtype)
    r = t if r is None else jnp.asarray(r, dtype)
    return (Query(jnp.asarray(x, dtype), t, r, {"label": jnp.asarray(labels, jnp.int32)}),)


def parameters(net, groups, name, modules):
    """A network's parameters with published weights, and 0 where none are published, as for the interval at first.

    Args:
        net: The network.
        groups: What it can be initialised with.
        name: Of the file.
        modules: {path of a module here: its published name, with * for the number of a layer}.
    """
    state = load_file(GOLDEN / f"{name}.safetensors")
    shapes = nn.unbox(jax.eval_shape(net.init, jax.random.key(0), groups))["params"]

    def fill(path, leaf):
        *parents, last = (key.key for key in path)
        official = f"{modules.get('/'.join(parents))}.{LEAVES[last]}"
        if "*" in official:
            layers = [state[official.replace("*", str(i))] for i in range(leaf.shape[0])]
            array = np.stack([array_of(layer, leaf.shape[1:], last) for layer in layers])
        else:
            array = array_of(state[official], leaf.shape, last) if official in state else np.zeros(leaf.shape)
        return jnp.asarray(array, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def array_of(weight, shape, leaf):
    """A published array in our layout: (out, in) -> (in, out), and a convolution (out, in, h, w) -> (h, w, in, out)."""
    if leaf != "kernel":
        return weight.reshape(shape)
    return weight.transpose(2, 3, 1, 0).reshape(shape) if weight.ndim == 4 else weight.T.reshape(shape)


@functools.cache
def _call(net, options):
    return jax.jit(functools.partial(net.apply, **dict(options)))


def call(net, params, groups, **options):
    """Applies a network, compiled."""
    return _call(net, tuple(options.items()))({"params": params}, groups)


def assert_close(ours, theirs, dtype):
    """Within 1e-9 of the largest value in float64, and 1e-5 in float32."""
    bound = 1e-9 if dtype == jnp.float64 else 1e-5
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound * np.abs(theirs).max())
