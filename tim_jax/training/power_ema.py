"""Power-function EMAs of the weights, and others synthesised from them after training.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models" (arXiv 2312.02696), section 3
and algorithms 1 to 3. After t steps the average with exponent γ is

    θ̂_γ(t) = (γ + 1)/t^{γ+1} ∫_0^t τ^γ θ(τ) dτ,    θ̂_γ(t) = β θ̂_γ(t − 1) + (1 − β) θ(t),    β = (1 − 1/t)^{γ+1}

and the second is exactly the first for weights that change in steps. Its length is σ_rel, the standard deviation of τ
under the density that it averages with, relative to t: an average with σ_rel 0.1 looks back over about a tenth of
training, however long that is. EMAs of two lengths, stored now and then, span those of others: their least-squares
combination synthesises any.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MAX_SIGMA_REL = 0.28  # 1/√12 = 0.2887, at γ = 0, is that of the plain mean of all steps
PREFIX = "sigma_rel:"  # of the names of these EMAs


def sigma_rel_of(gamma: float) -> float:
    """Returns σ_rel of an exponent γ > −1: (γ + 1)^{1/2} (γ + 2)^{−1} (γ + 3)^{−1/2}."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


@functools.cache
def gamma_of(sigma_rel: float) -> float:
    """Returns the exponent γ > 0 of a σ_rel in (0, MAX_SIGMA_REL], algorithm 2.

    It is the largest root of (γ + 2)² (γ + 3) = σ_rel⁻² (γ + 1).
    """
    inverse = sigma_rel**-2
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def name_of(sigma_rel: float) -> str:
    """Returns the name of an EMA: "sigma_rel:0.05"."""
    return f"{PREFIX}{sigma_rel:g}"


def named(name: str) -> float | None:
    """Returns σ_rel of the EMA that a name such as "sigma_rel:0.13" means; None for a name that means none."""
    try:
        sigma_rel = float(name.removeprefix(PREFIX))
    except ValueError:
        return None
    return sigma_rel if name.startswith(PREFIX) and 0 < sigma_rel <= MAX_SIGMA_REL else None


def canonical(name: str) -> str:
    """Returns the one way in which the name of an EMA is written: "sigma_rel:0.1" for "sigma_rel:0.10"."""
    sigma_rel = named(name)
    return name if sigma_rel is None else name_of(sigma_rel)


@dataclasses.dataclass(frozen=True)
class PowerFunction:
    """The decay of a power-function EMA, in place of one that is the same in all steps."""

    sigma_rel: float

    @functools.cached_property
    def gamma(self) -> float:
        """The exponent γ."""
        return gamma_of(self.sigma_rel)

    def share(self, step: jax.Array) -> jax.Array:
        """Returns 1 − β, the share of the new weights, in float32. step: number of steps done before, from 0 on."""
        return -jnp.expm1((self.gamma + 1) * jnp.log1p(-1 / (step + 1.0)))


class Profile(NamedTuple):
    """What an EMA averages with: the density proportional to τ^γ on (0, step] that has this σ_rel."""

    step: int
    sigma_rel: float


def inner(first: Sequence[Profile], second: Sequence[Profile]) -> np.ndarray:
    """Returns ∫ p(τ) q(τ) dτ of all profiles p (n,) and q (m,), as (n, m) in float64; algorithm 3."""
    t, s = (np.array([profile.step for profile in some], float) for some in (first, second))
    a, b = (np.array([gamma_of(profile.sigma_rel) for profile in some]) for some in (first, second))
    t, a = t[:, None], a[:, None]
    exponent = np.where(t < s, b, -a)  # the later one is integrated up to the end of the earlier one
    return (a + 1) * (b + 1) * (t / s) ** exponent / ((a + b + 1) * np.maximum(t, s))


def synthesis(stored: Sequence[Profile], wanted: Profile) -> tuple[np.ndarray, float]:
    """Finds the combination of stored EMAs whose profile is nearest to a wanted one.

    Unlike those of algorithm 3, which do so nearly, the coefficients add up to 1: weights that never change are then
    their own average, however few EMAs are stored.

    Args:
        stored: Profiles of the stored EMAs, no two alike.
        wanted: The profile to come near to, in the sense of least squares.

    Returns:
        The coefficients (n,), in float64, and the relative error √(∫ (Σ cᵢ pᵢ − p)² / ∫ p²) that is left.
    """
    gram, right = inner(stored, stored), inner(stored, [wanted])[:, 0]
    scale = np.sqrt(gram.diagonal())  # profiles of early snapshots are tall
    sides = np.stack([right, np.ones_like(right)], axis=1) / scale[:, None]
    free, to_one = np.linalg.lstsq(gram / np.outer(scale, scale), sides, rcond=1e-13)[0].T / scale
    coefficients = free + to_one * (1 - free.sum()) / to_one.sum()
    norm = inner([wanted], [wanted]).item()
    left = norm - 2 * coefficients @ right + coefficients @ gram @ coefficients
    return coefficients, math.sqrt(max(left, 0.0) / norm)
