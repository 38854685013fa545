"""Further updates of auxiliary networks, those of which a step makes several."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

import jax
import jax.numpy as jnp
import optax

from tim_jax.training.accumulation import accumulate, nonzero
from tim_jax.training.state import TrainState
from tim_jax.types import Examples, PyTree

if TYPE_CHECKING:
    from tim_jax.training.step import StepSettings


class Fitting(Protocol):
    """An objective with auxiliary networks of which a step makes several updates."""

    def auxiliary_loss(
        self, nets: Mapping[str, Callable], examples: Examples, step: jax.Array, key: jax.Array
    ) -> jax.Array:
        """Returns the losses (B,) of the auxiliary networks, of which the others get no gradient."""
        ...


def fit_auxiliary(
    settings: "StepSettings", state: TrainState, examples: Examples, key: jax.Array, nets_of: Callable
) -> tuple[dict[str, Any], Any, jax.Array]:
    """Makes those updates of auxiliary networks that come before a step's update of all.

    Args:
        settings: What the step is made of.
        state: The state before.
        examples: The whole batch.
        key: That of the objective, from which each of these updates gets a key of its own.
        nets_of: Function of parameters that returns the networks by name.

    Returns:
        Parameters and optimizer state after them, and whether all gradients and updates were finite.
    """
    turns = {part: each.updates for part, each in settings.auxiliary.items() if each.updates > 1}
    if not turns:
        return state.params, state.opt_state, jnp.array(True)
    assert examples.weight is not None
    total_weight = nonzero(examples.weight.sum())

    def loss(trained, examples, key, batch):
        nets = nets_of(state.params | trained)
        losses = cast(Fitting, settings.objective).auxiliary_loss(nets, examples, state.step, key)
        return jnp.sum(losses * examples.weight) / total_weight, ({}, {})

    grad = jax.grad(loss, has_aux=True)

    def update(carry, turn):
        trained, opt_state, finite = carry
        turn_key = jax.random.fold_in(key, jnp.uint32(2**32 - 4) - turn)
        if settings.accumulation == 1:
            grads, _ = grad(trained, examples, turn_key, turn)
        else:
            grads, *_ = accumulate(grad, trained, examples, turn_key, turn, settings.accumulation)
        finite &= jnp.isfinite(optax.tree.norm(grads))
        nothing = jax.tree.map(jnp.zeros_like, {name: p for name, p in state.params.items() if name not in grads})
        params = state.params | trained
        updates, new_state = settings.tx.update(nothing | grads, opt_state, params)
        finite &= jnp.isfinite(optax.tree.norm({part: updates[part] for part in turns}))
        new = {part: optax.apply_updates(params[part], updates[part]) for part in turns}
        for part, count in turns.items():
            has_turn = turn < count - 1
            new[part] = jax.tree.map(lambda new, old: jnp.where(has_turn, new, old), new[part], trained[part])
            opt_state = only_part(new_state, opt_state, part, has_turn)
        return (new, opt_state, finite), None

    first = {part: state.params[part] for part in turns}
    turn = jnp.arange(max(turns.values()) - 1, dtype=jnp.uint32)
    (trained, opt_state, finite), _ = jax.lax.scan(update, (first, state.opt_state, jnp.array(True)), turn)
    return state.params | trained, opt_state, finite


def only_part(new: PyTree, old: PyTree, part: str, has_turn: jax.Array) -> PyTree:
    """Returns the old state of an optimizer, but the new one of a network where it has its turn."""

    def choose(path: tuple, new: jax.Array, old: jax.Array) -> jax.Array:
        of_part = any(getattr(key, "key", None) == part for key in path)
        return jnp.where(has_turn, new, old) if of_part else old

    return jax.tree_util.tree_map_with_path(choose, new, old)
