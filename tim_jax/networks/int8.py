"""Inference with matrix products in int8 (W8A8): of the blocks' linear maps, for any network of `layers.Linear`.

    x W ≈ s_x s_W (x̄ W̄),  x̄ = round(x/s_x),  W̄ = round(W/s_W),  s = max|·|/127

with a scale s_x for each row of x and s_W for each output channel of W. The integers are multiplied and summed exactly,
in int32, on the units that the backend has for it. Embeddings, modulations, which depend on times and condition alone,
and the last layer keep their type, and so do attention, norms and biases.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tim_jax.networks.layers import Linear

LEVELS = 127


def quantise(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Returns x̄ in int8 and the scale s, float32 with length 1 along `axes`, over which one scale holds: x ≈ s x̄."""
    x = x.astype(jnp.float32)
    scale = jnp.abs(x).max(axes, keepdims=True) / LEVELS
    return jnp.round(x / jnp.where(scale > 0, scale, 1)).astype(jnp.int8), scale


def product(x: jax.Array, kernel: jax.Array, n_in: int) -> jax.Array:
    """Returns the approximation of `jnp.tensordot(x, kernel, n_in)` above, in float32."""
    rows, row_scale = quantise(x, tuple(range(x.ndim - n_in, x.ndim)))
    channels, channel_scale = quantise(kernel, tuple(range(n_in)))
    sums = jnp.tensordot(rows, channels, n_in, preferred_element_type=jnp.int32).astype(jnp.float32)
    row_scale = row_scale.reshape(*x.shape[: x.ndim - n_in], *[1] * (kernel.ndim - n_in))
    return sums * row_scale * channel_scale.reshape((1,) * (x.ndim - n_in) + kernel.shape[n_in:])


def with_int8(net: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that applies a network, such as a `Net`, as one that does so with products in int8.

    It raises ValueError for a network that has no such products.
    """
    found: list[tuple[str, ...]] = []

    def intercept(function: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module, name = context.module, context.method_name
        if not (isinstance(module, Linear) and name == "product" and in_block(module.path)):
            return function(*args, **kwargs)
        found.append(module.path)
        return product(*args).astype(module.dtype)

    def apply(*args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(intercept):
            outputs = net(*args, **kwargs)
        if not found:
            raise ValueError("sampling.int8 is True; it must be False for a network without linear maps in blocks")
        return outputs

    return apply


def in_block(path: tuple[str, ...]) -> bool:
    """Whether the linear map at a path of the network acts on tokens in a block."""
    return "blocks" in path and "modulation" not in path
