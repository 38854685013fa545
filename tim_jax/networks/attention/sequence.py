"""The tokens of a row over the devices of a mesh axis: what a network within `jax.shard_map` must do about it.

`axis` is the mesh axis whose devices have equal parts of the tokens, in order, or None where a device has them all and
nothing is to be done. A network works token by token, so that parts go through it like whole rows; only attention among
tokens must exchange them. All of it is linear: tangents and gradients go the same ways.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec


def part(x, axis: str | None, dim: int = 0):
    """A device's tokens of an array that has all of them along `dim`.

    Raises ValueError if their number is no multiple of that of the devices.
    """
    if axis is None:
        return x
    length, devices = x.shape[dim], jax.lax.axis_size(axis)
    if length % devices:
        raise ValueError(f"a row has {length} tokens: must be a multiple of {devices}, the devices that share them")
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * (length // devices), length // devices, dim)


def whole(x_BN, axis: str | None):
    """All tokens (B, N, …) on every device, from each one's own: the inverse of `part`."""
    return x_BN if axis is None else jax.lax.all_gather(x_BN, axis, axis=1, tiled=True, to="invarying")


def mean(x, axis: str | None):
    """The mean over the devices, on all of them: of what is the same on each that itself, known to be the same."""
    return x if axis is None else jax.lax.pmean(x, axis)


def numbers(count: int, axis: str | None):
    """(count,) which tokens of a row a device's `count` tokens are."""
    first = 0 if axis is None else jax.lax.axis_index(axis) * count
    return first + jnp.arange(count)


def attend(attention: Callable, q_BNHK, k_BNHK, v_BNHK, axis: str | None):
    """attention(q, k, v) of a device's tokens to all tokens of their rows.

    Where the devices divide the heads, each attends with all tokens in some heads (all-to-all; Jacobs et al., arXiv
    2309.14509). Else keys and values of all tokens come to every device, and queries stay.
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
    """Of `count` heads, how many a device has, and what makes a collective one of these alone.

    Heads may lie over another axis, which is left to the compiler: around a collective it would gather them.
    """
    (axis,) = nn.logical_to_mesh_axes(("heads",))
    devices = jax.sharding.get_abstract_mesh().shape.get(axis, 1)
    if devices == 1 or count % devices:
        return count, lambda collective: collective
    spec = PartitionSpec(None, None, axis)
    return count // devices, functools.partial(jax.shard_map, in_specs=spec, out_specs=spec, axis_names={axis})
