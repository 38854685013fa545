"""Which examples of a batch belong to a share of them, so that the share is exact over all batches.

A share of n examples is seldom a whole number. The whole part of n·share are examples at fixed places of every batch,
which is known when a program is compiled (`spread`). The fraction f that is left over is one more example in a share f
of the batches (`one_more`).
"""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

GOLDEN = 2654435769  # 2³² over the golden ratio


def exact(share: float | Fraction) -> Fraction:
    """Returns the fraction that a share is meant to be: 1/10 for 0.1."""
    return Fraction(share).limit_denominator(10**9)


def spread(share: float | Fraction, count: int) -> np.ndarray:
    """Returns a boolean array (count,) with ⌊n·share⌋ true among the first n, for every n."""
    reached = np.array([int(n * exact(share)) for n in range(count + 1)])
    return np.diff(reached) > 0


def left_over(share: float | Fraction, count: int) -> Fraction:
    """Returns the fraction of an example, in [0, 1), by which count·share exceeds the whole number below it."""
    return exact(share) * count % 1


def one_more(excess: Fraction, batch: jax.Array | int, start: Fraction = Fraction(0)) -> jax.Array:
    """Returns whether a batch has one more example of a share.

    Multiples of the golden ratio lie evenly in [0, 1) modulo 1: among any first N batches, the number of those that
    have one more differs from N·excess by a few at most. Batches have none in common for two shares whose intervals
    [start, start + excess) have none.

    Args:
        excess: The share of the batches that have one more, in [0, 1).
        batch: Number of the batch, from 0 on, a scalar.
        start: Where the interval begins whose multiples mean one more, in [0, 1).
    """
    multiple: jax.Array = jnp.asarray(batch).astype(jnp.uint32) * jnp.uint32(GOLDEN) - jnp.uint32(int(start * 2**32))
    found: jax.Array = multiple < jnp.uint32(int(excess * 2**32))
    return found
