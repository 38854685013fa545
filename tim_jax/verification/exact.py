"""Attention in float64 by NumPy, with its tangent and gradients written out: what no compiler has touched."""

import numpy as np


def attention(qkv: tuple, dots: tuple, do: np.ndarray, mask: np.ndarray | None) -> dict[str, np.ndarray]:
    """Returns {"output", "tangent", "dq", "dk", "dv"}.

    With s = q kᵀ/√K and p = softmax(s), they are o = p v; ȯ = ṗ v + p v̇, where ṗ = p (ṡ − Σ p ṡ); and the gradients of
    Σ o do: dv = pᵀ do, ds = p (do vᵀ − Σ o do), dq = ds k/√K, dk = dsᵀ q/√K.

    Args:
        qkv: q (B, N, H, K), k and v (B, M, H, K).
        dots: Their tangents.
        do: (B, N, H, K).
        mask: (B, M), True where a key may be attended to; None where all may.
    """
    (q, k, v), (q_dot, k_dot, v_dot) = (tuple(x.astype(np.float64) for x in three) for three in (qkv, dots))
    do, scale = do.astype(np.float64), q.shape[-1] ** -0.5

    def logits(q, k):
        return np.einsum("BNHK,BMHK->BHNM", q, k) * scale

    def mix(p, v):
        return np.einsum("BHNM,BMHK->BNHK", p, v)

    s = logits(q, k)
    p = np.exp(s - s.max(-1, keepdims=True))
    if mask is not None:
        p = p * mask[:, None, None, :]
    p /= p.sum(-1, keepdims=True)
    o = mix(p, v)
    s_dot = logits(q_dot, k) + logits(q, k_dot)
    p_dot = p * (s_dot - (p * s_dot).sum(-1, keepdims=True))
    dp = np.einsum("BNHK,BMHK->BHNM", do, v)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True))
    return {
        "output": o,
        "tangent": mix(p_dot, v) + mix(p, v_dot),
        "dq": mix(ds, k) * scale,
        "dk": np.einsum("BHNM,BNHK->BMHK", ds, q) * scale,
        "dv": np.einsum("BHNM,BNHK->BMHK", p, do),
    }
