"""One transformer block, and the policies by which it may be rematerialised."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tim_jax.networks.attention.modules import CrossAttention, SelfAttention
from tim_jax.networks.layers import SwiGLU, modulate, modulation

STREAM = ("batch", "tokens", "embed")

# What the backward pass finds of a block: everything; its input alone; its input and the output of blockwise attention;
# these and the results of products with weights.
ATTENTION = jax.checkpoint_policies.save_only_these_names("attention")
DOTS = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": ATTENTION,
    "dots": jax.checkpoint_policies.save_from_both_policies(DOTS, ATTENTION),
}


class Context(NamedTuple):
    """What all blocks see of a group of examples besides its stream.

    Attributes:
        c: The condition (B, D) of the modulation: times, class and guidance.
        delta: The embedding (B, D) of the interval.
        end: The two of these that the last blocks see in their place, or None where all see the same.
        rope: The RoPE table, see `rope.rope_table`.
        numbers: The numbers (N,) of the tokens within the example, for dropout.
        text: Normalised captions (B, M, D), or None.
        mask: The mask (B, M) of the captions, or None.
        key: Random keys (B,) for dropout, or None.
    """

    c: jax.Array
    delta: jax.Array
    end: tuple[jax.Array, jax.Array] | None
    rope: tuple[jax.Array, jax.Array]
    numbers: jax.Array
    text: jax.Array | None
    mask: jax.Array | None
    key: jax.Array | None

    def seen(self, late: jax.Array | bool) -> "Context":
        """Returns what a block sees, which is one of the last, or the final layer, where `late` is true."""
        if self.end is None:
            return self
        c, delta = (jnp.where(late, end, start) for end, start in zip(self.end, (self.c, self.delta), strict=True))
        return self._replace(c=c, delta=delta, end=None)


def keyed_dropout(
    y_BND: jax.Array,
    key_B: jax.Array | None,
    rate: float,
    layer: jax.Array | int,
    branch: int,
    number_N: jax.Array,
) -> jax.Array:
    """Dropout by a key of each example, so that its mask depends neither on the batch nor on the device.

    Args:
        y_BND: The activations of a residual branch.
        key_B: One random key per example; None drops nothing.
        rate: The probability of a drop, in [0, 1).
        layer, branch: The numbers of the layer and of the branch in it.
        number_N: The numbers of the tokens within the example.
    """
    if key_B is None or rate == 0:
        return y_BND

    def keep(key):
        key = jax.random.fold_in(jax.random.fold_in(key, layer), branch)
        key_N = jax.vmap(functools.partial(jax.random.fold_in, key))(number_N)
        return jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, y_BND.shape[2:]))(key_N)

    return jnp.where(jax.vmap(keep)(key_B), y_BND / (1 - rate), 0)


class Block(nn.Module):
    """Residual branches x + gate * f(modulate(x, shift, scale)), f: self-attention, (cross-attention,) SwiGLU.

    Shift, scale and gate come from c through a SwiGLU of width `bottleneck` whose output starts at zero (adaLN-Zero).
    One call takes the streams of all groups of examples, so that its parameters are read once for all of them.

    Attributes:
        heads: The number H of attention heads.
        bottleneck: The hidden width of the modulation.
        cross_attention: Whether there is a branch with attention to captions.
        interval_aware: Whether the embedding of the interval enters q, k and v.
        qk_norm: Whether q and k are normalised.
        dropout: The rate of dropout on each branch, for groups with keys.
        dtype: The type of the computation.
        in_jvp: For each group, whether the call is inside a `jax.jvp` with tangents for it.
        attention: "auto" or a name in ATTENTION.
        tokens: The mesh axis over which the tokens lie, see `sequence`.
    """

    heads: int
    bottleneck: int
    cross_attention: bool
    interval_aware: bool
    qk_norm: bool
    dropout: float
    dtype: Any
    in_jvp: tuple[bool, ...]
    attention: str = "auto"
    tokens: str | None = None

    @nn.compact
    def __call__(
        self, streams: tuple[jax.Array, ...], contexts: tuple[Context, ...], layer: jax.Array
    ) -> tuple[jax.Array, ...]:
        width = streams[0].shape[-1]
        options = (self.qk_norm, self.dtype, self.attention)
        attn = SelfAttention(self.heads, self.interval_aware, *options, self.tokens, name="attn")
        mlp = SwiGLU(width * 4 * 2 // 3, width, ("batch", "tokens"), dtype=self.dtype, name="mlp")
        branches = [lambda z, c, in_jvp: attn(z, c.delta, c.rope, in_jvp), lambda z, *_: mlp(z)]
        if self.cross_attention:
            cross = CrossAttention(self.heads, *options, name="cross")
            branches.insert(1, lambda z, c, in_jvp: cross(z, c.text, c.mask, c.rope, in_jvp))
        n = 3 * len(branches)
        modulations = modulation(self.bottleneck, n * width, self.dtype)

        def apply(x_BND: jax.Array, context: Context, in_jvp: bool) -> jax.Array:
            chunks = jnp.split(modulations(context.c), n, axis=-1)
            for i, branch in enumerate(branches):
                shift, scale, gate = chunks[3 * i : 3 * i + 3]
                y_BND = branch(modulate(x_BND, shift, scale), context, in_jvp)
                y_BND = keyed_dropout(y_BND, context.key, self.dropout, layer, i, context.numbers)
                x_BND = nn.with_logical_constraint(x_BND + gate[:, None] * y_BND, STREAM)
            return x_BND

        return tuple(map(apply, streams, contexts, self.in_jvp))
