"""Sums over microbatches, and means of what examples have with their weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tim_jax.types import Examples


def accumulate(
    grad: Callable, params: Any, examples: Examples, key: jax.Array, step: jax.Array, count: int
) -> tuple[Any, dict[str, Any], dict[str, jax.Array]]:
    """Returns sums of gradients and metrics over microbatches, and what is known of each example.

    Microbatch m holds the examples m, m + count, m + 2 count, …, which leaves every device its own.

    Args:
        grad: Function (params, examples, key, number of the microbatch) → (gradients, (metrics, arrays of each
            example)).
        params: Parameters.
        examples: The whole batch; `count` divides B.
        key: From which each microbatch gets a key of its own.
        step: Number of steps done before.
        count: Number of microbatches.
    """
    micro = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), examples)

    def add(total, inputs):
        m, part = inputs
        grads, (metrics, per_example) = grad(params, part, jax.random.fold_in(key, m), step * count + m)
        return jax.tree.map(jnp.add, total, (grads, metrics)), per_example

    grads, (metrics, _) = jax.eval_shape(grad, params, jax.tree.map(lambda x: x[0], micro), key, step)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (grads, metrics))
    (grads, metrics), per_example = jax.lax.scan(add, zeros, (jnp.arange(count), micro))
    return grads, metrics, jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1), per_example)


def nonzero(weight: jax.Array) -> jax.Array:
    """Returns a sum of weights that may be divided by: 1 where there are none, and with them no examples."""
    return jnp.where(weight == 0, 1.0, weight)


def weighted(values: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns Σ w·value and Σ w, which sum over microbatches; their quotient is the mean."""
    return jnp.sum(values * weight), jnp.sum(weight)
