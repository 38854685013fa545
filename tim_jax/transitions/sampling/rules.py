"""Plans whose weights depend on the image, or that evaluate the network only where an image needs it.

The host knows times, and coefficients that follow from them; what depends on states is a pure function of them, of
static shape, that the loop of `sampler.py` calls for every evaluation. States and predictions are tuples of K arrays
(B, …), the latest first. Nothing here looks from one image of a batch at another.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

Arrays: TypeAlias = tuple[jax.Array, ...]
Correct: TypeAlias = Callable[[Any, Arrays, Arrays], tuple[jax.Array, jax.Array]]
Guess: TypeAlias = Callable[[Any, Arrays, Arrays, jax.Array], tuple[jax.Array, jax.Array]]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["known"], meta_fields=["correct", "guess"])
@dataclasses.dataclass(frozen=True)
class Rule:
    """What depends on the image in a plan of n evaluations that remembers K of them.

    Attributes:
        known: A pytree of arrays (n, …), of which the functions are given the part of one evaluation j.
        correct: (known_j, y_j …, F_j …) → what each image adds to the weights a_j and b_j, (B, K) each.
        guess: (known_j, y_j …, F_{j−1} …, made) → F_j (B, …) as it is without an evaluation, and whether it will do,
            (B,) bool; `made` (K, B) says which of the predictions F_{j−1} … were the network's own.
    """

    known: Any
    correct: Correct | None = None
    guess: Guess | None = None


class Tally(NamedTuple):
    """What the loop counts, for each image.

    Attributes:
        made: (K, B) bool, which of the last K predictions are the network's own.
        evaluations: (B,), how many there have been; those with guidance count twice.
    """

    made: jax.Array
    evaluations: jax.Array


def tally(memory: int, images: int) -> Tally:
    """Returns that of a run that has not begun."""
    return Tally(jnp.zeros((memory, images), bool), jnp.zeros(images, jnp.int32))


def predict_where_needed(
    guess: Guess,
    known: Any,
    states: Arrays,
    predictions: Arrays,
    before: Tally,
    predict: Callable[[], jax.Array],
    cost: jax.Array,
) -> tuple[jax.Array, Tally]:
    """Returns the next prediction (B, …), and the tally after it.

    The network is called unless all images do without it: it is a batch that it evaluates, and where some images need
    it, the others keep their guesses. So no image depends on the others, but the time that a batch takes does.

    Args:
        guess, known, states, predictions: Those of the `Rule`.
        before: The tally.
        predict: Evaluates the network.
        cost: What an evaluation counts for.
    """
    guessed, will_do = guess(known, states, predictions, before.made)

    def network() -> jax.Array:
        return jnp.where(will_do.reshape(-1, *[1] * (guessed.ndim - 1)), guessed, predict())

    F: jax.Array = jax.lax.cond(will_do.all(), lambda: guessed, network)
    made = jnp.concatenate([~will_do[None], before.made[:-1]])
    return F, Tally(made, before.evaluations + jnp.where(will_do, 0, cost))
