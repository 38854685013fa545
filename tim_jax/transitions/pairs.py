"""Pairs of noise and data whose noise is refreshed less and less (SlimFlow, arXiv 2407.12718)."""

import jax
import jax.numpy as jnp

from tim_jax.transitions.annealing import Annealing
from tim_jax.types import Examples


def refreshed(refresh: Annealing, examples: Examples, step: jax.Array, key: jax.Array) -> Examples:
    """Returns pairs with √(1 − β²) ε + β ξ for their noise ε, ξ being drawn afresh.

    With β = 1 they are no pairs; as it falls to 0, what a network learns goes over from flow matching to reflow.

    Args:
        refresh: β over training; where it is always 0, the examples stay as they are.
        examples: A batch of B examples.
        step: The training step, a scalar.
        key: A random key.
    """
    if refresh.schedule == "constant" and refresh.final == 0:
        return examples
    beta, noise = refresh(step), examples.noise
    fresh = jax.random.normal(key, noise.shape, noise.dtype)
    mixed = jnp.sqrt(1 - beta**2) * noise + beta * fresh
    return examples._replace(noise=mixed.astype(noise.dtype))
