"""The tokens of a row over the devices of a mesh axis: what a network within `jax.shard_map` must do about it.

`axis` is the mesh axis whose devices have equal parts of the tokens, in order, or None where a device has them all and
nothing is to be done. A network works token by token, so that parts go through it like whole rows; only attention among
tokens must exchange them. All of it is linear: tangents and gradients go the same ways.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


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
    if q_BNHK.shape[2] % jax.lax.axis_size(axis) == 0 and not _split_by_compiler():
        q, k, v = (jax.lax.all_to_all(x, axis, 2, 1, tiled=True) for x in (q_BNHK, k_BNHK, v_BNHK))
        return jax.lax.all_to_all(attention(q, k, v), axis, 1, 2, tiled=True)
    k, v = (jax.lax.all_gather(x, axis, axis=1, tiled=True) for x in (k_BNHK, v_BNHK))
    return attention(q_BNHK, k, v)


def _split_by_compiler() -> bool:
    """Whether heads may also lie over an axis that is left to the compiler: it would gather them for an all-to-all."""
    mesh = jax.sharding.get_abstract_mesh()
    return any(mesh.shape[name] > 1 for name in mesh.auto_axes)
