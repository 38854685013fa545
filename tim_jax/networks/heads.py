"""What networks tell besides F: further heads, and the projection of states that is aligned with image features."""

from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from tim_jax.networks.attention import sequence
from tim_jax.networks.block import Context
from tim_jax.networks.embeddings import sinusoids
from tim_jax.networks.layers import Linear, wide
from tim_jax.networks.patches import unpatchify
from tim_jax.types import Query


class Projector(nn.Module):
    """Three linear layers with SiLU between them, from hidden states to the width of image features (REPA)."""

    hidden: int
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x_BND: jax.Array) -> jax.Array:
        h = nn.silu(Linear((self.hidden,), ("embed", "mlp"), dtype=self.dtype, name="in")(x_BND))
        h = nn.silu(Linear((self.hidden,), ("mlp", None), dtype=self.dtype, name="mid")(h))
        return Linear((self.features,), (None, None), dtype=self.dtype, name="out")(h).astype(wide(self.dtype))


Head: TypeAlias = Callable[[jax.Array, Context, Query, jax.Array], jax.Array]  # of last states and of tapped states


def velocity_head(net: Any) -> Head:
    """Returns the head with a second prediction like F (B, h, w, C), from the same last states."""
    final = net.final("velocity_head")
    return lambda x, ctx, q, tap: unpatchify(sequence.whole(final(x, ctx.c), net.tokens), q.x_t.shape)


def log_variance_head(net: Any) -> Head:
    """Returns the head u(t) (B,) of a learned weight e^{-u} L + u (sCM, arXiv 2410.11081), which starts at 0."""
    linear = Linear((1,), (None, None), "zeros", dtype=wide(net.dtype), name="log_variance_head")
    return lambda x, ctx, q, tap: sequence.mean(linear(sinusoids(q.t))[:, 0], net.tokens)


def joint_log_variance_head(net: Any) -> Head:
    """Returns the head u(t, r) (B,) of a learned weight (Decoupled MeanFlow, arXiv 2510.24474), which starts at 0."""
    linear = Linear((1,), (None, None), "zeros", dtype=wide(net.dtype), name="joint_log_variance_head")

    def head(x: jax.Array, ctx: Context, q: Query, tap: jax.Array) -> jax.Array:
        both = jnp.concatenate([sinusoids(q.t, 128), sinusoids(q.r, 128)], axis=-1)
        return sequence.mean(linear(both)[:, 0], net.tokens)

    return head


def pooled_head(net: Any) -> Head:
    """Returns the head with the mean (B, D) over patches of the states after block `encoder_depth`; no parameters."""
    return lambda x, ctx, q, tap: sequence.mean(tap.astype(wide(net.dtype)).mean(axis=1), net.tokens)


# Outputs that objectives may need besides F, by name: functions of a `Transformer`.
HEADS: dict[str, Callable[[Any], Head]] = {
    "velocity": velocity_head,
    "log_variance": log_variance_head,
    "joint_log_variance": joint_log_variance_head,
    "pooled": pooled_head,
}
