"""Layers that several frozen networks share, and what text encoders return."""

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
