"""Layers that all parts of the network are made of."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

INITS = {
    "xavier": nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"),
    "normal": nn.initializers.normal(0.02),
    "zeros": nn.initializers.zeros,
}


def wide(dtype: Any) -> Any:
    """Returns `dtype`, but at least float32: the type of parameters, norms, softmax and time embeddings."""
    return jnp.promote_types(jnp.float32, dtype)


def standardise(x: jax.Array, eps: float) -> jax.Array:
    """Returns (x - mean) / sqrt(variance + eps) over the last axis, in float32 at least."""
    x = x.astype(wide(x.dtype))
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)


def rms(x: jax.Array, eps: float) -> jax.Array:
    """Returns x / sqrt(mean(x²) + eps) over the last axis, in float32 at least."""
    x = x.astype(wide(x.dtype))
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)


def per_token(c: jax.Array) -> jax.Array:
    """Returns what acts on tokens (B, N, D): c (B, D) as (B, 1, D), and c (B, N, D) as it is."""
    return c[:, None] if c.ndim == 2 else c


def modulate(
    x_BND: jax.Array,
    scale: jax.Array,
    shift: jax.Array | None = None,
    norm: Callable[[jax.Array], jax.Array] = lambda x: standardise(x, 1e-6),
) -> jax.Array:
    """Returns norm(x) (1 + scale) + shift, in the type of `scale`.

    Args:
        x_BND: The states.
        scale, shift: (B, D), or (B, N, D) where each token has its own; without a shift it is 0.
        norm: The norm; by default layer norm without parameters.
    """
    y_BND = norm(x_BND) * (1 + per_token(scale))
    if shift is not None:
        y_BND = y_BND + per_token(shift)
    return y_BND.astype(scale.dtype)


class LayerNorm(nn.Module):
    """Layer norm with scale and bias over the last axis, which is called `axis`; its output is float32 at least."""

    axis: str | None = None
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = standardise(x, self.eps)
        shape = (1,) * (x.ndim - 1) + x.shape[-1:]
        scale = self.param("scale", self._init(nn.initializers.ones), x.shape[-1:], y.dtype)
        bias = self.param("bias", self._init(nn.initializers.zeros), x.shape[-1:], y.dtype)
        return y * scale.reshape(shape) + bias.reshape(shape)

    def _init(self, init):
        return nn.with_logical_partitioning(init, (self.axis,))


class RMSNorm(nn.Module):
    """RMS norm with scale over the last axis, which is called `axis`; its output is float32 at least."""

    axis: str | None = None
    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = rms(x, self.eps)
        init = nn.with_logical_partitioning(nn.initializers.ones, (self.axis,))
        scale: Any = self.param("scale", init, x.shape[-1:], y.dtype)
        return y * scale.reshape((1,) * (x.ndim - 1) + x.shape[-1:])


class Linear(nn.Module):
    """x W + b over the last axes of x. Parameters are float32 at least; biases start at zero.

    Attributes:
        features: The sizes of the output axes.
        axes: The logical names of all axes of W, those of the input first.
        kernel_init: A name in INITS.
        use_bias: Whether there is a bias b.
        dtype: The type of the computation.
        precision: The precision of the product, as `jnp.tensordot` takes it.
    """

    features: tuple[int, ...]
    axes: tuple[str | None, ...]
    kernel_init: str = "xavier"
    use_bias: bool = True
    dtype: Any = jnp.float32
    precision: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n_out = len(self.features)
        n_in = len(self.axes) - n_out
        shape = x.shape[x.ndim - n_in :] + self.features

        def init(key, shape, dtype):
            # Fans count all input and all output axes, as for the same map written as one matrix.
            matrix = (math.prod(shape[:n_in]), math.prod(shape[n_in:]))
            return INITS[self.kernel_init](key, matrix, dtype).reshape(shape)

        kernel = self._param("kernel", init, self.axes, shape)
        y = self.product(x, kernel, n_in)
        if self.use_bias:
            bias = self._param("bias", nn.initializers.zeros, self.axes[n_in:], self.features)
            y += bias.astype(self.dtype).reshape((1,) * (y.ndim - n_out) + self.features)
        return y

    def product(self, x: jax.Array, kernel: jax.Array, n_in: int) -> jax.Array:
        """Returns x W, summed over the last `n_in` axes of x; a method, so that `int8` can take its place."""
        return jnp.tensordot(x.astype(self.dtype), kernel.astype(self.dtype), n_in, precision=self.precision)

    def _param(self, name, init, axes, shape):
        return self.param(name, nn.with_logical_partitioning(init, axes), shape, wide(self.dtype))


class SwiGLU(nn.Module):
    """(silu(x W_gate) * x W_up) W_down.

    Attributes:
        hidden: The hidden width.
        features: The width of the output, whose logical name is embed.
        leading: The logical names of all axes of x but the last.
        axis_in: The logical name of the last axis of x.
        kernel_init, down_init: Names in INITS, for the first two products and for the last.
        dtype: The type of the computation.
        use_bias: Whether each product has a bias.
    """

    hidden: int
    features: int
    leading: tuple[str | None, ...]
    axis_in: str | None = "embed"
    kernel_init: str = "xavier"
    down_init: str = "xavier"
    dtype: Any = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        axes, options = (self.axis_in, "mlp"), {"use_bias": self.use_bias, "dtype": self.dtype}
        gate = Linear((self.hidden,), axes, self.kernel_init, **options, name="gate")(x)
        up = Linear((self.hidden,), axes, self.kernel_init, **options, name="up")(x)
        h = nn.with_logical_constraint(nn.silu(gate) * up, (*self.leading, "mlp"))
        y = Linear((self.features,), ("mlp", "embed"), self.down_init, **options, name="down")(h)
        return nn.with_logical_constraint(y, (*self.leading, "embed"))


class PackedSwiGLU(nn.Module):
    """(silu(a) * b) W_down, where (a, b) = x W_in is one product, each product with a bias: (B, N, D) -> (B, N, D).

    Attributes:
        hidden: The hidden width, of a and of b.
        dtype: The type of the computation.
    """

    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x_BND: jax.Array) -> jax.Array:
        pair = Linear((2, self.hidden), ("embed", None, "mlp"), dtype=self.dtype, name="in")(x_BND)
        h = nn.with_logical_constraint(nn.silu(pair[:, :, 0]) * pair[:, :, 1], ("batch", "tokens", "mlp"))
        return Linear((x_BND.shape[-1],), ("mlp", "embed"), dtype=self.dtype, name="down")(h)


class MLP(nn.Module):
    """gelu(x W_in) W_out with the approximation of GELU by tanh, each product with a bias: (B, N, D) -> (B, N, D).

    Attributes:
        hidden: The hidden width.
        dtype: The type of the computation.
    """

    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x_BND: jax.Array) -> jax.Array:
        h = nn.gelu(Linear((self.hidden,), ("embed", "mlp"), dtype=self.dtype, name="in")(x_BND), approximate=True)
        h = nn.with_logical_constraint(h, ("batch", "tokens", "mlp"))
        return Linear((x_BND.shape[-1],), ("mlp", "embed"), dtype=self.dtype, name="out")(h)


def modulation(bottleneck: int, features: int, dtype: Any, leading: tuple[str | None, ...] = ("batch",)) -> SwiGLU:
    """Returns the SwiGLU, zero at first, that turns a condition into shifts, scales and gates (adaLN-Zero).

    Args:
        bottleneck: The hidden width.
        features: The width of the output.
        dtype: The type of the computation.
        leading: The logical names of all axes of the condition but the last.
    """
    return SwiGLU(bottleneck, features, leading, down_init="zeros", dtype=dtype, name="modulation")
