"""One transformer block, and how it may be rematerialised."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tim_jax.networks.attention import sequence
from tim_jax.networks.attention.modules import CrossAttention, SelfAttention
from tim_jax.networks.layers import SwiGLU, modulate, modulation

STREAM = ("batch", "tokens", "embed")

# What a block keeps for the backward pass: everything; its input alone; its input and the output of blockwise
# attention; these and the results of weight products.
ATTENTION = jax.checkpoint_policies.save_only_these_names("attention")
DOTS = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": ATTENTION,
    "dots": jax.checkpoint_policies.save_from_both_policies(DOTS, ATTENTION),
}


class Context(NamedTuple):
    """What a group of rows shows to every block: c and delta (B, D), the RoPE table, and None where absent:
    normed captions (B, M, D), their mask (B, M), dropout keys (B,)."""

    c: jax.Array
    delta: jax.Array
    rope: tuple[jax.Array, jax.Array]
    text: jax.Array | None
    mask: jax.Array | None
    key: jax.Array | None


def row_dropout(y_BND, key_B, rate: float, layer, branch: int, tokens: str | None = None):
    """Dropout whose mask depends on the row's key, the layer, the branch and the token's number in the row, never on
    the row's place or on the device."""
    if key_B is None or rate == 0:
        return y_BND

    def keep(key):
        key = jax.random.fold_in(jax.random.fold_in(key, layer), branch)
        key_N = jax.vmap(functools.partial(jax.random.fold_in, key))(sequence.numbers(y_BND.shape[1], tokens))
        return jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, y_BND.shape[2:]))(key_N)

    return jnp.where(jax.vmap(keep)(key_B), y_BND / (1 - rate), 0)


class Block(nn.Module):
    """Residual branches x + gate * f(modulate(x, shift, scale)), f: self-attention, (cross-attention,) SwiGLU.

    Shift, scale and gate come from c through a SwiGLU of width `bottleneck` whose output starts at zero (adaLN-Zero).
    One call takes the streams of all row groups, so that its parameters are there once for all of them. moving: for
    each group, whether the call is inside a `jax.jvp`. attention: "auto" or a name in ATTENTION. tokens: the mesh axis
    over which the tokens lie, see `sequence`.
    """

    heads: int
    bottleneck: int
    cross_attention: bool
    interval_aware: bool
    qk_norm: bool
    dropout: float
    dtype: Any
    moving: tuple[bool, ...]
    attention: str = "auto"
    tokens: str | None = None

    @nn.compact
    def __call__(self, streams: tuple[jax.Array, ...], contexts: tuple[Context, ...], layer):
        width = streams[0].shape[-1]
        how = (self.qk_norm, self.dtype, self.attention)
        attn = SelfAttention(self.heads, self.interval_aware, *how, self.tokens, name="attn")
        mlp = SwiGLU(width * 4 * 2 // 3, width, ("batch", "tokens"), dtype=self.dtype, name="mlp")
        branches = [lambda z, c, moving: attn(z, c.delta, c.rope, moving), lambda z, *_: mlp(z)]
        if self.cross_attention:
            cross = CrossAttention(self.heads, *how, name="cross")
            branches.insert(1, lambda z, c, moving: cross(z, c.text, c.mask, c.rope, moving))
        n = 3 * len(branches)
        modulations = modulation(self.bottleneck, n * width, self.dtype)

        def group(x_BND, context, moving):
            chunks = jnp.split(modulations(context.c), n, axis=-1)
            for i, branch in enumerate(branches):
                shift, scale, gate = chunks[3 * i : 3 * i + 3]
                y_BND = branch(modulate(x_BND, shift, scale), context, moving)
                y_BND = row_dropout(y_BND, context.key, self.dropout, layer, i, self.tokens)
                x_BND = nn.with_logical_constraint(x_BND + gate[:, None] * y_BND, STREAM)
            return x_BND

        return tuple(map(group, streams, contexts, self.moving))
