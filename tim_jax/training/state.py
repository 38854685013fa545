"""Everything that changes while training, as one tree."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """step: steps done, int32 scalar. params: {part: tree}, "online" and what trains beside it. emas: {name: tree of
    the student}. opt_state: optax's.

    Rows, noise and times of a step follow from (seed, step), so that this tree is all that a run is.
    """

    step: jax.Array
    params: dict[str, Any]
    emas: dict[str, Any]
    opt_state: Any


def create(
    init: Callable[[jax.Array], Any],
    tx: optax.GradientTransformation,
    emas: dict[str, float],
    seed: int,
    auxiliary: tuple[str, ...] = (),
):
    """A function of no arguments that makes the first state; with boxed parameters under `jax.eval_shape`, too.

    init: key → parameters of the online network. auxiliary: networks of its kind, which start as copies of it.
    """

    def make() -> TrainState:
        # Step keys are folded from the same seed by numbers from 0 on; initialisation has a branch of its own.
        student = init(jax.random.fold_in(jax.random.key(seed), jnp.uint32(2**32 - 1)))
        params = {"online": student} | {part: jax.tree.map(jnp.copy, student) for part in auxiliary}
        averages = {name: jax.tree.map(jnp.copy, student) for name in emas}
        return TrainState(jnp.zeros((), jnp.int32), params, averages, tx.init(params))

    return make


def update_emas(emas: dict[str, Any], params: Any, decays: dict[str, float], step: jax.Array) -> dict[str, Any]:
    """Averages after a step: decay · average + (1 − decay) · parameters.

    The decay starts low, min(decay, (1 + step)/(10 + step)), so that the first weights are soon forgotten.
    """

    def average(name):
        decay = jnp.minimum(decays[name], (1.0 + step) / (10.0 + step))
        return jax.tree.map(lambda ema, new: ema + (1 - decay) * (new - ema), emas[name], params)

    return {name: average(name) for name in emas}
