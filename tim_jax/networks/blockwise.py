"""Attention in blocks of queries and keys: no array of all queries by all keys, in no direction of differentiation.

Every block of queries passes over the blocks of keys with an online softmax (Milakov and Gimelshein, arXiv 1805.02867;
Dao et al., arXiv 2205.14135). It keeps, per query n, with logits s_nm and tangents of logits ṡ_nm of the keys so far,

    m  the largest logit             z  Σ exp(s − m)             y  Σ exp(s − m) v
    a  the weighted mean of ṡ                                    ẏ  Σ exp(s − m) ((ṡ − a) v + v̇)

so that in the end y / z is the output and ẏ / z its tangent. Taking a along costs little and leaves nothing to cancel.
The backward pass recomputes the weights exp(s − L) from L = m + log z.

JAX differentiates a function by one rule of its own only, forward or reverse. So there are two: `plain`, for rows
without tangent, and `moving`, for rows that pass through one `jax.jvp`, within reverse mode or not.
"""

import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from tim_jax.networks import xla
from tim_jax.networks.layers import wide

BLOCK = 512  # queries and keys of a block, at most


def attention(q_BNHK, k_BMHK, v_BMHK, mask_BM=None, moving: bool = False):
    """softmax(q k^T / sqrt(K)) v, (B, N, H, K), as `xla.attention`.

    moving: for a call inside `jax.jvp`; such a function has no reverse mode outside `jax.jvp`, the other no `jax.jvp`.
    """
    q, k, v = (x.swapaxes(1, 2) for x in (q_BNHK, k_BMHK, v_BMHK))
    return (_moving if moving else _plain)(q, k, v, mask_BM).swapaxes(1, 2)


# The two functions and their rules. Arrays are (B, H, N or M, K) from here on, and L (B, H, N).


def _plain(q, k, v, mask):
    return _output(q, k, v, mask, *_named(_forward(*jax.lax.stop_gradient((q, k, v)), mask)))


@jax.custom_jvp
def _moving(q, k, v, mask):
    return _forward(q, k, v, mask)[0]


@_moving.defjvp
def _moving_jvp(primals, tangents):
    q, k, v, mask = primals
    dots = tangents[:3]
    *result, o_dot = _forward_and_tangent(*jax.lax.stop_gradient((q, k, v, *dots)), mask)
    # Output and tangent come from one pass and go back by rules of their own: where a loss does not differentiate the
    # tangent, JAX finds that rule, and all that the tangent comes from, without use.
    return _output(q, k, v, mask, *_named(result)), _tangent(q, k, v, *dots, mask, o_dot)


def _named(result):
    """(output, L), all that the backward pass needs besides q, k and v, by a name for policies of `jax.checkpoint`."""
    return [checkpoint_name(x, "attention") for x in result]


@jax.custom_vjp
def _output(q, k, v, mask, o, L):
    """o, as a function of q, k and v."""
    return o


def _output_forward(q, k, v, mask, o, L):
    return o, (q, k, v, mask, o, L)


def _output_backward(saved, do):
    return *_backward(*saved, do), None, None, None


_output.defvjp(_output_forward, _output_backward)


@jax.custom_vjp
def _tangent(q, k, v, q_dot, k_dot, v_dot, mask, o_dot):
    """o_dot, as a function of q, k, v and their tangents; its gradient comes from `xla`, with that one's memory."""
    return o_dot


def _tangent_forward(*inputs):
    return inputs[-1], inputs[:-1]


def _tangent_backward(saved, do_dot):
    *inputs, mask = saved

    def tangent(*inputs):
        inputs = tuple(x.swapaxes(1, 2) for x in inputs)
        return jax.jvp(lambda *qkv: xla.attention(*qkv, mask), inputs[:3], inputs[3:])[1].swapaxes(1, 2)

    return *jax.vjp(tangent, *inputs)[1](do_dot), None, None


_tangent.defvjp(_tangent_forward, _tangent_backward)


# The passes over the blocks.


def _forward(q, k, v, mask):
    """(output, L)."""
    keys = _blocks(k), _blocks(v), _key_mask(mask, k)

    def of_queries(_, q):
        def step(state, block):
            k, v, keep = block
            return _advance(state, _logits(q, k, keep), v)[0], None

        state, _ = jax.lax.scan(step, _start(q, v), keys)
        return None, _finish(state, v.dtype)

    _, (o, L) = jax.lax.scan(of_queries, None, _blocks(q))
    return _join(o, q), _join(L, q)[..., 0]


def _forward_and_tangent(q, k, v, q_dot, k_dot, v_dot, mask):
    """(output, L, tangent of the output)."""
    keys = *map(_blocks, (k, v, k_dot, v_dot)), _key_mask(mask, k)

    def of_queries(_, block):
        q, q_dot = block

        def step(carry, block):
            state, a, y_dot = carry
            k, v, k_dot, v_dot, keep = block
            new, p, shrink = _advance(state, _logits(q, k, keep), v)
            s_dot = _logits(q_dot, k) + _logits(q, k_dot)
            a_new = (state[1] * shrink * a + jnp.sum(p * s_dot, -1, keepdims=True)) / _nonzero(new[1])
            y_dot = shrink * (y_dot + (a - a_new) * state[2])
            y_dot += _dot("...nm,...mk->...nk", p * (s_dot - a_new), v) + _dot("...nm,...mk->...nk", p, v_dot)
            return (new, a_new, y_dot), None

        m, z, y = state = _start(q, v)
        (state, _, y_dot), _ = jax.lax.scan(step, (state, jnp.zeros_like(z), jnp.zeros_like(y)), keys)
        return None, (*_finish(state, v.dtype), (y_dot / _nonzero(state[1])).astype(v.dtype))

    _, (o, L, o_dot) = jax.lax.scan(of_queries, None, (_blocks(q), _blocks(q_dot)))
    return _join(o, q), _join(L, q)[..., 0], _join(o_dot, q)


def _backward(q, k, v, mask, o, L, do):
    """Gradients of q, k and v for the gradient `do` of the output."""
    work = wide(q.dtype)
    D = jnp.sum(do.astype(work) * o.astype(work), -1, keepdims=True)
    rows = tuple(_blocks(x) for x in (q, do, L[..., None], D))

    def of_keys(dq, block):
        k, v, keep = block

        def step(carry, block):
            dk, dv = carry
            q, do, L, D, dq = block
            p = jnp.exp(_logits(q, k, keep) - L)
            ds = p * (_dot("...nk,...mk->...nm", do, v) - D) * q.shape[-1] ** -0.5
            dv += _dot("...nm,...nk->...mk", p, do)
            dk += _dot("...nm,...nk->...mk", ds, q)
            dq += _dot("...nm,...mk->...nk", ds, k)
            return (dk, dv), dq

        zeros = jnp.zeros_like(k, work), jnp.zeros_like(v, work)
        (dk, dv), dq = jax.lax.scan(step, zeros, (*rows, dq))
        return dq, (dk, dv)

    keys = _blocks(k), _blocks(v), _key_mask(mask, k)
    dq, (dk, dv) = jax.lax.scan(of_keys, jnp.zeros_like(rows[0], work), keys)
    return tuple(_join(dx, x).astype(x.dtype) for dx, x in ((dq, q), (dk, k), (dv, v)))


# Within a block.


def _start(q, v):
    """(m, z, y) before the first key."""
    column = jnp.zeros_like(q[..., :1], wide(q.dtype))
    return column + jnp.finfo(column.dtype).min, column, jnp.zeros_like(q, column.dtype)


def _advance(state, s, v):
    """(m, z, y) after the keys with logits s and values v; exp(s − m), and what older sums were multiplied with."""
    m, z, y = state
    m_new = jnp.maximum(m, s.max(-1, keepdims=True))
    p, shrink = jnp.exp(s - m_new), jnp.exp(m - m_new)
    z, y = shrink * z + p.sum(-1, keepdims=True), shrink * y + _dot("...nm,...mk->...nk", p, v)
    return (m_new, z, y), p, shrink


def _finish(state, dtype):
    """(output, L). Without any key z is 0, the output 0, and L finite, so that all of exp(−∞ − L) is 0."""
    m, z, y = state
    return (y / _nonzero(z)).astype(dtype), m + jnp.log(_nonzero(z))


def _nonzero(z):
    return jnp.where(z == 0, 1, z)


def _logits(q, k, keep=None):
    """q k^T / sqrt(K), −∞ at keys that are masked."""
    s = _dot("...nk,...mk->...nm", q, k) * q.shape[-1] ** -0.5
    return s if keep is None else jnp.where(keep, s, -jnp.inf)


def _dot(equation, a, b):
    """A product with weights rounded to the type of q, k and v, and sums in float32 at least."""
    a = a.astype(b.dtype)
    return jnp.einsum(equation, a, b, precision=xla.precision(b.dtype), preferred_element_type=wide(b.dtype))


# Blocks.


def _sizes(length: int) -> tuple[int, int]:
    """(number, size) of the blocks of so many queries or keys: all alike, with as little padding as can be."""
    number = math.ceil(length / BLOCK)
    return number, math.ceil(length / number)


def _blocks(x):
    """(B, H, N, …) -> (number, B, H, size, …), with zeros behind the last."""
    number, size = _sizes(x.shape[2])
    x = jnp.pad(x, [(0, number * size - n if axis == 2 else 0) for axis, n in enumerate(x.shape)])
    return jnp.moveaxis(x.reshape(*x.shape[:2], number, size, *x.shape[3:]), 2, 0)


def _join(x, like):
    """The inverse of `_blocks`."""
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])[:, :, : like.shape[2]]


def _key_mask(mask_BM, k):
    """(number, B, 1, 1, size), True where a key may be attended to, or None if all may."""
    length = k.shape[2]
    if mask_BM is None:
        number, size = _sizes(length)
        if number * size == length:
            return None
        mask_BM = jnp.ones((1, length), bool)
    return jnp.moveaxis(_blocks(mask_BM[:, None, :, None]), -1, -2)
