"""A head that draws the prediction of each token by flow matching (difference transition matching, arXiv 2506.23589).

From the trunk's last states and a noised prediction y_s = (1 − s) y_0 + s Y, y_0 being noise, it tells Y − y_0 of every
token by itself. A draw of Y is Euler's method from y_0 along it: one evaluation of the trunk, and as many of this small
network as there are steps.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tim_jax.networks.embeddings import TimeEmbedder
from tim_jax.networks.layers import Linear, SwiGLU, modulate, modulation, standardise, wide

DEPTH = 3  # residual branches
TOKENS = ("batch", "tokens")


class TransitionHead(nn.Module):
    """Y − y_0 of each token, (B, N, p, p, C), zero at first, from states, condition, y_s (B, N, p, p, C), s (B, N)."""

    patch_size: int
    channels: int
    dtype: Any

    @nn.compact
    def __call__(self, x_BND: jax.Array, c_BD: jax.Array, y_BNppC: jax.Array, s_BN: jax.Array) -> jax.Array:
        width = x_BND.shape[-1]
        modulations = modulation(width // 2, 2 * width, self.dtype, TOKENS[: c_BD.ndim - 1])
        shift, scale = jnp.split(modulations(c_BD), 2, axis=-1)
        given = Linear((width,), ("embed", "mlp"), dtype=self.dtype, name="states")(modulate(x_BND, scale, shift))
        s_BND = TimeEmbedder(width, "normal", self.dtype, name="s_embedder")(s_BN.ravel()).reshape(x_BND.shape)
        z = Linear((width,), (None, None, None, "embed"), dtype=self.dtype, name="patch")(y_BNppC) + given + s_BND
        for n in range(DEPTH):
            branch = SwiGLU(width, width, TOKENS, dtype=self.dtype, name=f"branch_{n}")
            z = z + branch(standardise(z, 1e-6).astype(self.dtype))
        features, axes = (self.patch_size, self.patch_size, self.channels), ("embed", None, None, None)
        return Linear(features, axes, "zeros", dtype=wide(self.dtype), name="linear")(standardise(z, 1e-6))


def transition(
    head: TransitionHead, x_BND: jax.Array, c_BD: jax.Array, condition: dict[str, jax.Array], cut: Callable
) -> jax.Array:
    """Returns Y − y_0 (B, N, p, p, C) at y_s, or a draw of Y.

    Args:
        head: The head.
        x_BND: The trunk's last states.
        c_BD: The condition of the trunk's modulation, (B, D), or (B, N, D) where each token has its own.
        condition: "transition" (B, h, w, C) is y_s, and "transition_s" (B, h, w) says s, which is the same within a
            patch. For a draw it is y_0, and "transition_times" (B, K + 1) are the times of Euler's method, from 0 to 1.
        cut: Cuts (B, h, w, C) into patches (B, N, p, p, C), of this device.
    """
    y = cut(condition["transition"])
    if "transition_s" in condition:
        return head(x_BND, c_BD, y, cut(condition["transition_s"][..., None])[:, :, 0, 0, 0])
    times = condition["transition_times"]
    for k in range(times.shape[1] - 1):
        s_BN = jnp.broadcast_to(times[:, k, None], y.shape[:2])
        y = y + (times[:, k + 1] - times[:, k])[:, None, None, None, None] * head(x_BND, c_BD, y, s_BN)
    return y


def check_condition(condition: dict[str, Any]) -> None:
    """Raises ValueError for a condition that lacks what the head is given."""
    if "transition" not in condition or not {"transition_s", "transition_times"} & set(condition):
        raise ValueError(
            f"condition has {sorted(condition)}; it must have 'transition', and 'transition_s' or 'transition_times'"
        )
