"""The arithmetic of one block of queries against one block of keys, which all attention in blocks shares.

A block of queries meets the blocks of keys one after another with an online softmax (Milakov and Gimelshein, arXiv
1805.02867; Dao et al., arXiv 2205.14135). Its state, per query n, with logits s_nm and their tangents ṡ_nm so far, is

    m  the largest logit             z  Σ exp(s − m)             y  Σ exp(s − m) v
    a  the weighted mean of ṡ                                    ẏ  Σ exp(s − m) ((ṡ − a) v + v̇)

so that in the end y / z is the output and ẏ / z its tangent. With a as part of the state, no digits cancel.
The backward pass recomputes the weights exp(s − L) from L = m + log z.

Arrays are (..., n, K) for queries and (..., m, K) for keys; m, z, a and L are columns (..., n, 1), so that all of this
works on whole arrays and on the blocks of a kernel alike. `scale` is the factor 1 / sqrt(K) of q k^T. `keep` is
(..., 1, m), True where a key may be attended to, or None.
"""

import jax.numpy as jnp

from tim_jax.networks.layers import wide


def start(q, v):
    """Returns the state (m, z, y) before the first key."""
    column = jnp.zeros_like(q[..., :1], wide(q.dtype))
    return column + jnp.finfo(column.dtype).min, column, jnp.zeros_like(q, column.dtype)


def advance(state, q, k, v, keep, scale):
    """Returns the state (m, z, y) after the keys k with values v."""
    return _advance(state, _logits(q, k, keep, scale), v)[0]


def finish(state, dtype):
    """Returns (output, L). Without any key z is 0, the output is 0, and L is finite, so that exp(−∞ − L) is 0."""
    m, z, y = state
    return (y / _nonzero(z)).astype(dtype), m + jnp.log(_nonzero(z))


def start_with_tangent(q, v):
    """Returns the state ((m, z, y), a, ẏ) before the first key."""
    m, z, y = start(q, v)
    return (m, z, y), jnp.zeros_like(z), jnp.zeros_like(y)


def advance_with_tangent(state, q, q_dot, k, v, k_dot, v_dot, keep, scale):
    """Returns the state ((m, z, y), a, ẏ) after the keys k with values v."""
    old, a, y_dot = state
    new, p, shrink = _advance(old, _logits(q, k, keep, scale), v)
    s_dot = _logits(q_dot, k, None, scale) + _logits(q, k_dot, None, scale)
    a_new = (old[1] * shrink * a + jnp.sum(p * s_dot, -1, keepdims=True)) / _nonzero(new[1])
    y_dot = shrink * (y_dot + (a - a_new) * old[2])
    y_dot += dot("...nm,...mk->...nk", p * (s_dot - a_new), v) + dot("...nm,...mk->...nk", p, v_dot)
    return new, a_new, y_dot


def finish_with_tangent(state, dtype):
    """Returns (output, L, tangent of the output)."""
    new, _, y_dot = state
    return *finish(new, dtype), (y_dot / _nonzero(new[1])).astype(dtype)


def pull(q, k, do, v, L, D, keep, scale):
    """Returns the weights p and the gradient of q k^T, for the gradient do of the output.

    D is the sum of do times output. With queries and keys exchanged (k, q, v, do; L and D as rows, keep as a column)
    both results are transposed.
    """
    p = jnp.exp(_logits(q, k, keep, scale) - L)
    return p, p * (dot("...nk,...mk->...nm", do, v) - D) * scale


def _advance(state, s, v):
    """Returns the state after keys with logits s and values v, exp(s − m), and the factor of the older sums."""
    m, z, y = state
    m_new = jnp.maximum(m, s.max(-1, keepdims=True))
    p, shrink = jnp.exp(s - m_new), jnp.exp(m - m_new)
    z, y = shrink * z + p.sum(-1, keepdims=True), shrink * y + dot("...nm,...mk->...nk", p, v)
    return (m_new, z, y), p, shrink


def _nonzero(z):
    return jnp.where(z == 0, 1, z)


def _logits(q, k, keep, scale):
    """Returns q k^T times scale, −∞ at masked keys."""
    s = dot("...nk,...mk->...nm", q, k) * scale
    return s if keep is None else jnp.where(keep, s, -jnp.inf)


def dot(equation, a, b):
    """Returns a product with weights rounded to the type of q, k and v, and with sums in float32 at least."""
    return jnp.einsum(equation, a.astype(b.dtype), b, preferred_element_type=wide(b.dtype))
