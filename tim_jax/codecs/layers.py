"""Layers that several frozen networks share, and what text encoders return."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


def check_sides(images_BHWC, factor: int) -> None:
    """Raises ValueError if a side of the images is no multiple of `factor`."""
    height, width = images_BHWC.shape[1:3]
    if height % factor or width % factor:
        raise ValueError(f"images are {height}×{width}; both sides must be multiples of {factor}")


def doubled(x_BhwC):
    """Returns x (B, h, w, C) at twice the size, (B, 2 h, 2 w, C), by nearest neighbours."""
    return x_BhwC.repeat(2, axis=1).repeat(2, axis=2)


def self_attention(z_BND, heads: int, dense: Callable[..., nn.Dense], qkv_bias: bool = True):
    """Returns multi-head self-attention (B, N, D) of tokens; its four projections belong to the module that calls."""
    B, N, D = z_BND.shape
    q, k, v = (dense(D, use_bias=qkv_bias, name=f"attention.{n}_proj")(z_BND).reshape(B, N, heads, -1) for n in "qkv")
    # jax.nn.dot_product_attention has float32 for its softmax, whatever it is given.
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("bnhk,bmhk->bhnm", q, k, preferred_element_type=wide) * q.shape[-1] ** -0.5
    y = jnp.einsum("bhnm,bmhk->bnhk", jax.nn.softmax(logits).astype(v.dtype), v)
    return dense(D, name="attention.o_proj")(y.reshape(B, N, D))


class Hidden(NamedTuple):
    """Hidden states of a text encoder.

    Attributes:
        last: (B, M, D) after the last layer and norm.
        second_to_last: (B, M, D) before the last layer.
    """

    last: jax.Array
    second_to_last: jax.Array


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · (offset + scale), plus a bias if `bias`; computed in float32, returned in `dtype`."""

    eps: float
    offset: float = 0.0
    bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        shape = (1,) * (x.ndim - 1) + x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        x = x * (self.offset + scale.astype(jnp.float32)).reshape(shape)
        if self.bias:
            x += self.param("bias", nn.initializers.zeros, x.shape[-1:]).astype(jnp.float32).reshape(shape)
        return x.astype(self.dtype)
