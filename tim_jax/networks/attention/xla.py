"""Attention as it is written down, with all logits at once: the reference, differentiable in every way."""

from typing import Any

import jax
import jax.numpy as jnp

from tim_jax.networks.layers import wide


def attention(
    q_BNHK: jax.Array,
    k_BMHK: jax.Array,
    v_BMHK: jax.Array,
    mask_BM: jax.Array | None = None,
    in_jvp: bool = False,
) -> jax.Array:
    """Returns softmax(q k^T / sqrt(K)) v (B, N, H, K), the softmax in float32 at least.

    Args:
        q_BNHK, k_BMHK, v_BMHK: Queries, keys and values.
        mask_BM: bool, True where a key may be attended to. An example without any such key gets zeros.
        in_jvp: Has no effect here, see `modules.ATTENTION`.
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


def precision(dtype: Any) -> Any:
    """Returns the precision of products of `dtype` with sums in float32; it keeps backward products in bfloat16."""
    return jax.lax.DotAlgorithmPreset.BF16_BF16_F32 if dtype == jnp.bfloat16 else None
