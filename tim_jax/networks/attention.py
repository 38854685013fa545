"""Attention, and the two modules that use it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tim_jax.networks.layers import LayerNorm, Linear, wide
from tim_jax.networks.rope import rotate

HEADS = ("batch", "tokens", "heads", "head")


def attention(q_BNHK, k_BMHK, v_BMHK, mask_BM=None):
    """softmax(q k^T / sqrt(K)) v, the softmax in float32 at least; returns (B, N, H, K).

    mask_BM: bool, True where a key may be attended to. A row without any True gets zeros.
    """
    # jax.nn.dot_product_attention would round the logits of float64 inputs to float32. As there, the stated precision
    # keeps the backward products of bfloat16 inputs in bfloat16.
    precision = jax.lax.DotAlgorithmPreset.BF16_BF16_F32 if q_BNHK.dtype == jnp.bfloat16 else None
    logits_BHNM = jnp.einsum(
        "BNHK,BMHK->BHNM", q_BNHK, k_BMHK, precision=precision, preferred_element_type=wide(q_BNHK.dtype)
    )
    logits_BHNM *= q_BNHK.shape[-1] ** -0.5
    if mask_BM is None:
        weights_BHNM = jax.nn.softmax(logits_BHNM)
    else:
        mask_B11M = mask_BM[:, None, None, :]
        weights_BHNM = jax.nn.softmax(jnp.where(mask_B11M, logits_BHNM, jnp.finfo(logits_BHNM.dtype).min))
        weights_BHNM = jnp.where(mask_B11M, weights_BHNM, 0)
    return jnp.einsum("BHNM,BMHK->BNHK", weights_BHNM.astype(v_BMHK.dtype), v_BMHK)


class SelfAttention(nn.Module):
    """Attention among patches, with q, k, v = z W + b (+ E W', E the interval's embedding), rotated q and k."""

    heads: int
    interval_aware: bool
    qk_norm: bool
    dtype: Any

    @nn.compact
    def __call__(self, z_BND, delta_BD, rope):
        width = z_BND.shape[-1]
        features, axes = (3, self.heads, width // self.heads), ("embed", "qkv", "heads", "head")
        qkv = Linear(features, axes, dtype=self.dtype, name="qkv")(z_BND)
        if self.interval_aware:
            qkv += Linear(features, axes, use_bias=False, dtype=self.dtype, name="qkv_delta")(delta_BD)[:, None]
        q, k, v = (nn.with_logical_constraint(qkv[:, :, i], HEADS) for i in range(3))
        if self.qk_norm:
            q, k = LayerNorm("head", name="q_norm")(q), LayerNorm("head", name="k_norm")(k)
        q, k = rotate(q, rope).astype(self.dtype), rotate(k, rope).astype(self.dtype)
        y = nn.with_logical_constraint(attention(q, k, v), HEADS)
        return Linear((width,), ("heads", "head", "embed"), dtype=self.dtype, name="out")(y)


class CrossAttention(nn.Module):
    """Attention from patches to captions (B, M, D) under mask_BM or None. Only q, which has a place, is rotated."""

    heads: int
    qk_norm: bool
    dtype: Any

    @nn.compact
    def __call__(self, z_BND, text_BMD, mask_BM, rope):
        width = z_BND.shape[-1]
        head = (self.heads, width // self.heads)
        q = Linear(head, ("embed", "heads", "head"), dtype=self.dtype, name="q")(z_BND)
        kv = Linear((2, *head), ("embed", "qkv", "heads", "head"), dtype=self.dtype, name="kv")(text_BMD)
        q = nn.with_logical_constraint(q, HEADS)
        k, v = (nn.with_logical_constraint(kv[:, :, i], ("batch", None, "heads", "head")) for i in range(2))
        if self.qk_norm:
            q, k = LayerNorm("head", name="q_norm")(q), LayerNorm("head", name="k_norm")(k)
        q, k = rotate(q, rope).astype(self.dtype), k.astype(self.dtype)
        y = nn.with_logical_constraint(attention(q, k, v, mask_BM), HEADS)
        return Linear((width,), ("heads", "head", "embed"), dtype=self.dtype, name="out")(y)
