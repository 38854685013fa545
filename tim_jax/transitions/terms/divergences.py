"""Weights with which matching lowers an f-divergence of the data from the samples (f-distill, arXiv 2502.15681).

With ρ = p_data(x_t)/p_student(x_t) the gradient of D_f = E_student[f(ρ)] is that of the reverse KL with each sample
weighted by h(ρ) = ρ² f″(ρ). The logit of an optimal discriminator is log ρ.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

MAX_LOGIT = 10.0
RATIOS = (0.3, 3.0)  # between which ρ is kept

DIVERGENCES: dict[str, Callable[[jax.Array], jax.Array]] = {  # ρ → h, up to a factor
    "rkl": jnp.ones_like,  # reverse KL, f = −log ρ: h is 1, and ρ not needed
    "kl": lambda ratio: ratio,  # forward KL, f = ρ log ρ
    "js": lambda ratio: ratio / (1 + ratio),  # Jensen–Shannon, f = ρ log ρ − (1 + ρ) log ½(1 + ρ)
    "sf": lambda ratio: 1 / (1 + ratio),  # softened reverse KL, f = (1 + ρ) log((1 + ρ)/ρ)
    "neyman": lambda ratio: 1 / ratio,  # Neyman χ², f = (1 − ρ)²/ρ
    "sh": jnp.sqrt,  # squared Hellinger, f = (1 − √ρ)²
    "jf": lambda ratio: 1 + ratio,  # Jeffreys, f = (ρ − 1) log ρ
}


def density_ratio(logits: jax.Array) -> jax.Array:
    """Returns ρ (B,), kept between RATIOS, from a discriminator's logits (B, M), and without gradient."""
    ratio = jnp.exp(jnp.clip(logits.mean(axis=1), -MAX_LOGIT, MAX_LOGIT))
    return jax.lax.stop_gradient(jnp.clip(ratio, *RATIOS))


def importance(divergence: str, ratio: jax.Array) -> jax.Array:
    """Returns the weights h(ρ) (B,) over their mean, for a name in DIVERGENCES and ρ (B,)."""
    h = DIVERGENCES[divergence](ratio)
    return h / (h.mean() + 1e-6)


def per_bin(ratio: jax.Array, level: jax.Array, means: jax.Array, decay: float = 0.0) -> tuple[jax.Array, jax.Array]:
    """Returns ρ (B,) over its mean in equal bins of the noise level, and these means (bins,).

    A discriminator that is off by a factor which changes with the level has no weight of its own that way.

    Args:
        ratio: ρ (B,).
        level: The noise levels (B,) in [0, 1].
        means: The means (bins,) before, which bins without an example keep.
        decay: Of an EMA of the means.
    """
    bins = len(means)
    member = jnp.minimum((level * bins).astype(int), bins - 1)[None] == jnp.arange(bins)[:, None]
    count = member.sum(axis=1)
    new = decay * means + (1 - decay) * (member * ratio[None]).sum(axis=1) / (count + 1e-6)
    means = jnp.where(count > 0, new, means)
    return ratio / ((member * means[:, None]).sum(axis=0) + 1e-6), means
