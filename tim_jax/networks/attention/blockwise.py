"""Attention in blocks of queries and keys: no array of all queries by all keys, in no direction of differentiation.

The loops over the blocks are plain JAX, for every platform; the arithmetic within a block is in `online`.
"""

import math

import jax
import jax.numpy as jnp

from tim_jax.networks.attention import online, rules
from tim_jax.networks.layers import wide

BLOCK = 512  # the largest number of queries or keys in a block


# The passes over the blocks, as `rules.differentiable` takes them.


def forward(q, k, v, mask):
    """Returns (output, L)."""
    keys, scale = (_blocks(k), _blocks(v), _key_mask(mask, k)), q.shape[-1] ** -0.5

    def of_queries(_, q):
        step = lambda state, block: (online.advance(state, q, *block, scale), None)  # noqa: E731
        state, _ = jax.lax.scan(step, online.start(q, v), keys)
        return None, online.finish(state, v.dtype)

    _, (o, L) = jax.lax.scan(of_queries, None, _blocks(q))
    return _join(o, q), _join(L, q)[..., 0]


def forward_and_tangent(q, k, v, q_dot, k_dot, v_dot, mask):
    """Returns (output, L, tangent of the output)."""
    keys, scale = (*map(_blocks, (k, v, k_dot, v_dot)), _key_mask(mask, k)), q.shape[-1] ** -0.5

    def of_queries(_, queries):
        step = lambda state, block: (online.advance_with_tangent(state, *queries, *block, scale), None)  # noqa: E731
        state, _ = jax.lax.scan(step, online.start_with_tangent(queries[0], v), keys)
        return None, online.finish_with_tangent(state, v.dtype)

    _, (o, L, o_dot) = jax.lax.scan(of_queries, None, (_blocks(q), _blocks(q_dot)))
    return _join(o, q), _join(L, q)[..., 0], _join(o_dot, q)


def backward(q, k, v, mask, o, L, do):
    """Returns the gradients of q, k and v for the gradient `do` of the output."""
    work, scale = wide(q.dtype), q.shape[-1] ** -0.5
    D = jnp.sum(do.astype(work) * o.astype(work), -1, keepdims=True)
    queries = tuple(_blocks(x) for x in (q, do, L[..., None], D))

    def of_keys(dq, block):
        k, v, keep = block

        def step(carry, block):
            dk, dv = carry
            q, do, L, D, dq = block
            p, ds = online.pull(q, k, do, v, L, D, keep, scale)
            dv += online.dot("...nm,...nk->...mk", p, do)
            dk += online.dot("...nm,...nk->...mk", ds, q)
            dq += online.dot("...nm,...mk->...nk", ds, k)
            return (dk, dv), dq

        zeros = jnp.zeros_like(k, work), jnp.zeros_like(v, work)
        (dk, dv), dq = jax.lax.scan(step, zeros, (*queries, dq))
        return dq, (dk.astype(k.dtype), dv.astype(v.dtype))

    keys = _blocks(k), _blocks(v), _key_mask(mask, k)
    dq, (dk, dv) = jax.lax.scan(of_keys, jnp.zeros_like(queries[0], work), keys)
    return _join(dq, q).astype(q.dtype), _join(dk, k), _join(dv, v)


attention = rules.differentiable(forward, forward_and_tangent, backward)


# Blocks.


def _sizes(length: int) -> tuple[int, int]:
    """Returns number and size of the blocks of `length` queries or keys: equal blocks with the least padding."""
    number = math.ceil(length / BLOCK)
    return number, math.ceil(length / number)


def _blocks(x):
    """Cuts (B, H, N, …) into (number, B, H, size, …), with zeros after the last."""
    number, size = _sizes(x.shape[2])
    x = jnp.pad(x, [(0, number * size - n if axis == 2 else 0) for axis, n in enumerate(x.shape)])
    return jnp.moveaxis(x.reshape(*x.shape[:2], number, size, *x.shape[3:]), 2, 0)


def _join(x, like):
    """Joins blocks to an array of the length of `like`: the inverse of `_blocks`."""
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])[:, :, : like.shape[2]]


def _key_mask(mask_BM, k):
    """Returns (number, B, 1, 1, size), True where a key may be attended to, or None if all may."""
    length = k.shape[2]
    if mask_BM is None:
        number, size = _sizes(length)
        if number * size == length:
            return None
        mask_BM = jnp.ones((1, length), bool)
    return jnp.moveaxis(_blocks(mask_BM[:, None, :, None]), -1, -2)
