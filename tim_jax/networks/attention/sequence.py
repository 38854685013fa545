"""Sequence parallelism: the tokens of an example lie on the devices of a mesh axis, within `jax.shard_map`.

`axis` is the mesh axis whose devices have equal parts of the tokens, in order, or None where a device has them all and
these functions do nothing. A network works token by token, so that parts go through it like whole examples; only
attention among tokens must exchange them. All of this is linear: tangents and gradients go the same ways.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec


def part(x: jax.Array, axis: str | None, dim: int = 0) -> jax.Array:
    """Returns the tokens of this device from an array that has all of them along `dim`.

    Raises:
        ValueError: The number of tokens is no multiple of the number of devices.
    """
    if axis is None:
        return x
    length, devices = x.shape[dim], jax.lax.axis_size(axis)
    if length % devices:
        raise ValueError(f"an example has {length} tokens; it must be a multiple of {devices}, the devices they lie on")
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * (length // devices), length // devices, dim)


def whole(x_BN: jax.Array, axis: str | None) -> jax.Array:
    """Gathers all tokens (B, N, …) on every device, from each one's own: the inverse of `part`."""
    return x_BN if axis is None else jax.lax.all_gather(x_BN, axis, axis=1, tiled=True, to="invarying")


def mean(x: jax.Array, axis: str | None) -> jax.Array:
    """Returns the mean over the devices; of equal values that is the value itself, and known to be equal."""
    return x if axis is None else jax.lax.pmean(x, axis)


def attend(attention: Callable, q_BNHK: jax.Array, k_BNHK: jax.Array, v_BNHK: jax.Array, axis: str | None) -> jax.Array:
    """Returns attention(q, k, v) of the tokens of this device to all tokens of their examples.

    Where the number of devices divides the heads, each device attends with all tokens in some heads (all-to-all; Jacobs
    et al., arXiv 2309.14509). Otherwise keys and values of all tokens come to every device, and queries stay.
    """
    if axis is None:
        return attention(q_BNHK, k_BNHK, v_BNHK)
    heads, here = _on_heads(q_BNHK.shape[2])
    if heads % jax.lax.axis_size(axis) == 0:
        to_heads, to_tokens = (
            here(functools.partial(jax.lax.all_to_all, axis_name=axis, split_axis=a, concat_axis=b, tiled=True))
            for a, b in ((2, 1), (1, 2))
        )
        return to_tokens(attention(*map(to_heads, (q_BNHK, k_BNHK, v_BNHK))))
    gather = here(functools.partial(jax.lax.all_gather, axis_name=axis, axis=1, tiled=True))
    return attention(q_BNHK, gather(k_BNHK), gather(v_BNHK))


def _on_heads(count: int) -> tuple[int, Callable]:
    """Returns how many of `count` heads a device has, and a function that restricts a collective to these.

    Heads may lie over another mesh axis, which is left to the compiler: around a collective it would gather them.
    """
    (axis,) = nn.logical_to_mesh_axes(("heads",)) or (None,)
    devices = jax.sharding.get_abstract_mesh().shape.get(axis, 1)
    if devices == 1 or count % devices:
        return count, lambda collective: collective
    spec = PartitionSpec(None, None, axis)
    return count // devices, functools.partial(jax.shard_map, in_specs=spec, out_specs=spec, axis_names={axis})
