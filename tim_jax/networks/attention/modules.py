"""Implementations of attention by name, and the two modules that use them."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from tim_jax.networks.attention import blockwise, pallas, sequence, xla
from tim_jax.networks.layers import Linear
from tim_jax.networks.rope import rotate

HEADS = ("batch", "tokens", "heads", "head")


# Implementations by name. Each takes q (B, N, H, K), k and v (B, M, H, K), a key mask (B, M) or None, and `in_jvp`,
# whether the call is inside a `jax.jvp`; it returns (B, N, H, K).
ATTENTION: dict[str, Callable[..., jax.Array]] = {
    "xla": xla.attention,
    "blockwise": blockwise.attention,
    "pallas": pallas.attention,
}
# "auto" is "xla" below so many keys, and "blockwise" from there on. "pallas" must be chosen by name: compilers for TPUs
# and GPUs accept its kernels, and interpreted they are right, but they have not run on an accelerator yet.
LINEAR_FROM = 2048


def attention(
    q_BNHK: jax.Array,
    k_BMHK: jax.Array,
    v_BMHK: jax.Array,
    mask_BM: jax.Array | None = None,
    in_jvp: bool = False,
    implementation: str = "auto",
) -> jax.Array:
    """Returns softmax(q k^T / sqrt(K)) v (B, N, H, K).

    Args:
        q_BNHK, k_BMHK, v_BMHK: Queries, keys and values.
        mask_BM: bool, True where a key may be attended to; None where all may.
        in_jvp: Whether the call is inside a `jax.jvp`.
        implementation: A name in ATTENTION, or "auto", which chooses by the number of keys.
    """
    if implementation == "auto":
        implementation = "xla" if k_BMHK.shape[1] < LINEAR_FROM else "blockwise"
    return ATTENTION[implementation](q_BNHK, k_BMHK, v_BMHK, mask_BM, in_jvp)


class SelfAttention(nn.Module):
    """Attention among patches, with q, k, v = z W + b (+ E W', E the embedding of the interval).

    Attributes:
        heads: The number H of heads.
        norm: What normalises queries and keys, such as LayerNorm; None: nothing does.
        dtype: The type of the computation.
        attention: "auto" or a name in ATTENTION.
        tokens: The mesh axis over which the tokens lie, see `sequence`.
        interval_aware: Whether E enters q, k and v.
        qkv_bias: Whether there is a bias b.
    """

    heads: int
    norm: Callable[..., nn.Module] | None
    dtype: Any
    attention: str = "auto"
    tokens: str | None = None
    interval_aware: bool = False
    qkv_bias: bool = True

    @nn.compact
    def __call__(
        self,
        z_BND: jax.Array,
        rope: tuple[jax.Array, ...] | None = None,
        in_jvp: bool = False,
        delta_BD: jax.Array | None = None,
    ) -> jax.Array:
        """Returns (B, N, D).

        Args:
            z_BND: The states.
            rope: The RoPE table of queries and keys, or None for none.
            in_jvp: Whether the call is inside a `jax.jvp`.
            delta_BD: E, where it enters.
        """
        width = z_BND.shape[-1]
        features, axes = (3, self.heads, width // self.heads), ("embed", "qkv", "heads", "head")
        qkv = Linear(features, axes, use_bias=self.qkv_bias, dtype=self.dtype, name="qkv")(z_BND)
        if self.interval_aware and delta_BD is not None:
            qkv += Linear(features, axes, use_bias=False, dtype=self.dtype, name="qkv_delta")(delta_BD)[:, None]
        q, k, v = (nn.with_logical_constraint(qkv[:, :, i], HEADS) for i in range(3))
        if self.norm:
            q, k = _normalised(self.norm, q, k)
        if rope:
            q, k = rotate(q, rope).astype(self.dtype), rotate(k, rope).astype(self.dtype)
        attend = functools.partial(attention, in_jvp=in_jvp, implementation=self.attention)
        y = sequence.attend(attend, q, k, v, self.tokens)
        y = nn.with_logical_constraint(y, HEADS)
        return Linear((width,), ("heads", "head", "embed"), dtype=self.dtype, name="out")(y)


class CrossAttention(nn.Module):
    """Attention from patches to captions, with RoPE on q alone, since captions have no place in the image.

    Attributes:
        heads: The number H of heads.
        norm: What normalises queries and keys, such as LayerNorm; None: nothing does.
        dtype: The type of the computation.
        attention: "auto" or a name in ATTENTION.
    """

    heads: int
    norm: Callable[..., nn.Module] | None
    dtype: Any
    attention: str = "auto"

    @nn.compact
    def __call__(
        self,
        z_BND: jax.Array,
        text_BMD: jax.Array,
        mask_BM: jax.Array | None,
        rope: tuple[jax.Array, ...],
        in_jvp: bool = False,
    ) -> jax.Array:
        width = z_BND.shape[-1]
        head = (self.heads, width // self.heads)
        q = Linear(head, ("embed", "heads", "head"), dtype=self.dtype, name="q")(z_BND)
        kv = Linear((2, *head), ("embed", "qkv", "heads", "head"), dtype=self.dtype, name="kv")(text_BMD)
        q = nn.with_logical_constraint(q, HEADS)
        k, v = (nn.with_logical_constraint(kv[:, :, i], ("batch", None, "heads", "head")) for i in range(2))
        if self.norm:
            q, k = _normalised(self.norm, q, k)
        q = rotate(q, rope).astype(self.dtype)
        y = attention(q, k, v, mask_BM, in_jvp, self.attention)
        y = nn.with_logical_constraint(y, HEADS)
        return Linear((width,), ("heads", "head", "embed"), dtype=self.dtype, name="out")(y)


def _normalised(norm: Callable[..., nn.Module], q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns queries and keys normalised, in their type: XLA would write them in float32 before they are rotated."""
    return norm("head", name="q_norm")(q).astype(q.dtype), norm("head", name="k_norm")(k).astype(k.dtype)
