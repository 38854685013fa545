"""Attention as it is written down, all logits at once: the yardstick, differentiable in every way."""

import jax
import jax.numpy as jnp

from tim_jax.networks.layers import wide


def attention(q_BNHK, k_BMHK, v_BMHK, mask_BM=None, moving: bool = False):
    """softmax(q k^T / sqrt(K)) v, the softmax in float32 at least; returns (B, N, H, K).

    mask_BM: bool, True where a key may be attended to. A row without any True gets zeros. moving: changes nothing.
    """
    # jax.nn.dot_product_attention would round the logits of float64 inputs to float32.
    dtype = q_BNHK.dtype
    logits_BHNM = jnp.einsum(
        "BNHK,BMHK->BHNM", q_BNHK, k_BMHK, precision=precision(dtype), preferred_element_type=wide(dtype)
    )
    logits_BHNM *= q_BNHK.shape[-1] ** -0.5
    if mask_BM is None:
        weights_BHNM = jax.nn.softmax(logits_BHNM)
    else:
        mask_B11M = mask_BM[:, None, None, :]
        weights_BHNM = jax.nn.softmax(jnp.where(mask_B11M, logits_BHNM, jnp.finfo(logits_BHNM.dtype).min))
        weights_BHNM = jnp.where(mask_B11M, weights_BHNM, 0)
    return jnp.einsum("BHNM,BMHK->BNHK", weights_BHNM.astype(v_BMHK.dtype), v_BMHK)


def precision(dtype):
    """Of a product of two arrays of `dtype` with sums in float32: stated, it keeps backward products in bfloat16."""
    return jax.lax.DotAlgorithmPreset.BF16_BF16_F32 if dtype == jnp.bfloat16 else None
