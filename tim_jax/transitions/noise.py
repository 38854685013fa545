"""The law of the noise ε: standard normal, or that of PFGM++ (arXiv 2302.04265) with D augmented dimensions.

PFGM++ puts data of N numbers into N + D dimensions and perturbs it by R u, u a uniform direction in the N of the data
and

    R = σ √D √(b/(1 − b)),   b ~ Beta(N/2, D/2).

R/σ does not depend on σ, so that this is a law of ε, for every transport alike. b/(1 − b) is χ²_N/χ²_D, and √χ²_N u is
standard normal, z:

    ε = √(D/χ²_D) z,

Student's t-distribution with D degrees of freedom in N numbers. D → ∞ is diffusion, D = 1 PFGM; with D ≤ 2 the variance
of ε is infinite. The published code keeps b within [0.001, 0.999], which for small D cuts off much of this law; nothing
is cut off here.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from tim_jax.transitions.jump import expand


def draw_noise(
    augmented_dimensions: int, key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = float
) -> jax.Array:
    """Draws the noise of examples, independent of one another.

    Args:
        augmented_dimensions: D above; 0 for standard normal noise.
        key: A random key.
        shape: (B, …), of B examples.
        dtype: The type of the numbers.
    """
    if not augmented_dimensions:
        return jax.random.normal(key, shape, dtype)
    normal_key, scale_key = jax.random.split(key)
    half = augmented_dimensions / 2
    # By its logarithm, as χ² with few degrees of freedom comes near to 0.
    log_half_chi_square = jax.random.loggamma(scale_key, half, shape[:1], dtype)
    normal = jax.random.normal(normal_key, shape, dtype)
    return expand(jnp.sqrt(half) * jnp.exp(-0.5 * log_half_chi_square), normal) * normal


def log_density(augmented_dimensions: int, noise: jax.Array) -> jax.Array:
    """Returns the logarithm (B,) of the density of noises (B, …), of D augmented dimensions as in `draw_noise`."""
    flat = noise.reshape(len(noise), -1)
    size, square = flat.shape[1], jnp.square(flat).sum(axis=1)
    if not augmented_dimensions:
        return -0.5 * (square + size * math.log(2 * math.pi))
    D = augmented_dimensions
    constant = math.lgamma((D + size) / 2) - math.lgamma(D / 2) - size / 2 * math.log(D * math.pi)
    return constant - (D + size) / 2 * jnp.log1p(square / D)
