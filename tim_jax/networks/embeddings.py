"""Embeddings of times, of the interval between them, of guidance, of classes and of captions."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tim_jax.networks.layers import INITS, LayerNorm, Linear, SwiGLU, wide

# The embedding of the interval by name, from the embedders T of times and D of intervals (TiM, arXiv 2509.04394).
INTERVALS = {
    "t-r": lambda T, D, t, r: D(t - r),
    "r": lambda T, D, t, r: D(r),
    "t,r": lambda T, D, t, r: T(t) + D(r),
    "t,t-r": lambda T, D, t, r: T(t) + D(t - r),
    "r,t-r": lambda T, D, t, r: T(r) + D(t - r),
    "t,r,t-r": lambda T, D, t, r: T(t) + T(r) + D(t - r),
}


def sinusoids(t: jax.Array, width: int = 256, base: float = 10000) -> jax.Array:
    """Returns (B, width) cosines, then sines, of t * base^(-2 i / width) for times (B,), in float32 at least."""
    dtype = wide(t.dtype)
    frequency = jnp.exp(-math.log(base) * jnp.arange(width // 2, dtype=dtype) / (width // 2))
    angle = t.astype(dtype)[:, None] * frequency[None, :]
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class TimeEmbedder(nn.Module):
    """Sinusoids -> Linear -> SiLU -> Linear: (B,) -> (B, width), in float32 at least.

    The products keep full precision on accelerators too: they are small, and dF/dt passes through them.

    Attributes:
        width: The width of the embedding.
        kernel_init, out_init: Names in INITS, for the first product, and for the last where it is another.
        dtype: The type of the computation.
        base: That of the sinusoids' frequencies.
    """

    width: int
    kernel_init: str
    dtype: Any
    out_init: str = ""
    base: float = 10000

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        options: dict[str, Any] = {"dtype": wide(self.dtype), "precision": jax.lax.Precision.HIGHEST}
        h = Linear((self.width,), (None, "mlp"), self.kernel_init, **options, name="in")(self.waves(t))
        out_init = self.out_init or self.kernel_init
        return Linear((self.width,), ("mlp", "embed"), out_init, **options, name="out")(nn.silu(h))

    def waves(self, t: jax.Array) -> jax.Array:
        """Returns the sinusoids (B, n) of times."""
        return sinusoids(t, base=self.base)


class FourierEmbedder(TimeEmbedder):
    """A `TimeEmbedder` of sines, then cosines, of 2 π f t, for 256 random frequencies f that are never trained."""

    def waves(self, t: jax.Array) -> jax.Array:
        dtype = wide(self.dtype)
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), (None,))
        frequency: Any = self.param("frequencies", init, (256,), dtype)
        angle = 2 * jnp.pi * t.astype(dtype)[:, None] * frequency[None]
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class GuidanceEmbedder(nn.Module):
    """A guidance scale and the ends of the interval of times in which it holds, (B, 3) -> three of (B, width)."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, guidance: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        scale, low, high = guidance.T
        inputs = {"scale": jnp.log(scale), "low": low, "high": high}
        scale, low, high = (TimeEmbedder(self.width, "normal", self.dtype, name=name)(x) for name, x in inputs.items())
        return scale, low, high


class LabelEmbedder(nn.Module):
    """A vector per class, and a last one for the null class: (B,) in 0 .. num_classes -> (B, width), NaN outside."""

    num_classes: int
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, label: jax.Array) -> jax.Array:
        init = nn.with_logical_partitioning(INITS["normal"], (None, "embed"))
        table = self.param("table", init, (self.num_classes + 1, self.width), wide(self.dtype))
        # Look up in the whole table: gathering its columns afterwards would move activations instead.
        table = nn.with_logical_constraint(table, (None, None))
        return jnp.take(table, label, axis=0, mode="fill")


class ContextTokens(nn.Module):
    """Learned tokens, to each of which the embedding of a condition is added: (B, D) -> (B, count, D)."""

    count: int
    dtype: Any

    @nn.compact
    def __call__(self, e_BD: jax.Array) -> jax.Array:
        init = nn.with_logical_partitioning(INITS["normal"], (None, "embed"))
        tokens = self.param("tokens", init, (self.count, e_BD.shape[-1]), wide(self.dtype))
        tokens = nn.with_logical_constraint(tokens, (None, None))
        return (tokens[None] + e_BD[:, None]).astype(self.dtype)


class CaptionEmbedder(nn.Module):
    """LayerNorm -> SwiGLU of hidden width 4 D: (B, M, T) text features -> (B, M, width)."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, text_BMT: jax.Array) -> jax.Array:
        y = LayerNorm(name="norm")(text_BMT.astype(wide(self.dtype)))
        leading = ("batch", None)
        return SwiGLU(4 * self.width, self.width, leading, None, "normal", "normal", self.dtype, name="mlp")(y)
