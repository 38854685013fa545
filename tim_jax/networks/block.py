"""What a transformer block and the final layer are, whatever the network, and how a block may be rematerialised."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from tim_jax.networks.layers import Linear, modulate, per_token, standardise, wide

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
        c: The condition of the modulation, (B, D), or (B, N, D) where each token has its own: times, class, guidance.
        delta: The embedding (B, D) of the interval.
        time: The embedding (B, D) of times, and of the interval where c has it.
        end: The three of these that the last blocks see in their place, or None where all see the same.
        rope: The RoPE table, see `rope.rope_table`, or None.
        numbers: The numbers (N,) of the tokens within the example, for dropout.
        text: Normalised captions (B, M, D), or None.
        mask: The mask (B, M) of the captions, or None.
        key: Random keys (B,) for dropout, or None.
        front: Tokens (B, M, D) in front of those of the image, or None.
    """

    c: jax.Array
    delta: jax.Array
    time: jax.Array
    end: tuple[jax.Array, jax.Array, jax.Array] | None
    rope: tuple[jax.Array, ...] | None
    numbers: jax.Array
    text: jax.Array | None
    mask: jax.Array | None
    key: jax.Array | None
    front: jax.Array | None

    def alone(self) -> "Context":
        """Returns what a block sees of an image without tokens in front."""
        if self.front is None:
            return self
        count = self.front.shape[1]
        rope = None if self.rope is None else tuple(table[count:] for table in self.rope)
        return self._replace(rope=rope, numbers=self.numbers[count:], front=None)

    def seen(self, late: jax.Array | bool) -> "Context":
        """Returns what a block sees, which is one of the last, or the final layer, where `late` is true."""
        if self.end is None:
            return self
        both = zip(self.end, (self.c, self.delta, self.time), strict=True)
        c, delta, time = (jnp.where(late, end, start) for end, start in both)
        return self._replace(c=c, delta=delta, time=time, end=None)


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


Branch: TypeAlias = Callable[[jax.Array, Context, bool], jax.Array]  # of (z (B, N, D), what is seen, in_jvp)


class Modulated(nn.Module):
    """What a condition modulates by shift and scale; subclasses say by which layers.

    Attributes:
        dtype: The type of the computation.
    """

    dtype: Any

    def modulations(self, features: int) -> Callable[[jax.Array], jax.Array]:
        """Returns the layers from a condition to shifts, scales and gates: SiLU, and a linear map that starts at 0."""
        linear = Linear((features,), ("embed", "mlp"), "zeros", dtype=self.dtype, name="modulation")
        return lambda c: linear(nn.silu(c))

    def norm(self, name: str) -> Callable[[jax.Array], jax.Array]:
        """Returns a norm over the width: of the layer, without parameters."""
        return functools.partial(standardise, eps=1e-6)


class Block(Modulated):
    """Residual branches x + gate * f(norm(x) (1 + scale) + shift), where c gives shift, scale and gate (adaLN-Zero).

    One call takes the streams of all groups of examples, so that its parameters are read once for all of them.

    Attributes:
        heads: The number H of attention heads.
        dropout: The rate of dropout on each branch, for groups with keys.
        in_jvp: For each group, whether the call is inside a `jax.jvp` with tangents for it.
        attention: "auto" or a name in ATTENTION.
        tokens: The mesh axis over which the tokens lie, see `sequence`.
        shift: Whether there is a shift.
    """

    heads: int
    dropout: float
    in_jvp: tuple[bool, ...]
    attention: str
    tokens: str | None
    shift: bool = True

    def branches(self, width: int) -> tuple[Branch, ...]:
        """Returns the functions f of the branches, for streams of that width."""
        raise NotImplementedError

    @nn.compact
    def __call__(
        self, streams: tuple[jax.Array, ...], contexts: tuple[Context, ...], layer: jax.Array
    ) -> tuple[jax.Array, ...]:
        width = streams[0].shape[-1]
        branches = self.branches(width)
        norms = [self.norm(f"norm_{i}") for i in range(len(branches))]
        each = 2 + self.shift  # of shift, scale, gate
        modulations = self.modulations(each * len(branches) * width)

        def apply(x_BND: jax.Array, context: Context, in_jvp: bool) -> jax.Array:
            chunks = jnp.split(modulations(context.c), each * len(branches), axis=-1)
            for i, (branch, norm) in enumerate(zip(branches, norms)):
                *shift, scale, gate = chunks[each * i : each * (i + 1)]
                z_BND = modulate(x_BND, scale, shift[0] if shift else None, norm)
                y_BND = branch(z_BND, context, in_jvp)
                y_BND = keyed_dropout(y_BND, context.key, self.dropout, layer, i, context.numbers)
                x_BND = nn.with_logical_constraint(x_BND + per_token(gate) * y_BND, STREAM)
            return x_BND

        return tuple(map(apply, streams, contexts, self.in_jvp))


class FinalLayer(Modulated):
    """A modulated norm and a linear map to patches, (B, N, D) -> (B, N, p, p, C), which starts at zero."""

    patch_size: int
    channels: int

    @nn.compact
    def __call__(self, x_BND: jax.Array, c: jax.Array) -> jax.Array:
        shift, scale = jnp.split(self.modulations(2 * x_BND.shape[-1])(c), 2, axis=-1)
        features = (self.patch_size, self.patch_size, self.channels)
        linear = Linear(features, ("embed", None, None, None), "zeros", dtype=wide(self.dtype), name="linear")
        return linear(modulate(x_BND, scale, shift, norm=self.norm("norm")))
