"""What terms have in common, and how they join an objective's own loss."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import jax

from tim_jax.transitions.derivative import Net
from tim_jax.types import Auxiliary, Examples, Heads

if TYPE_CHECKING:
    from tim_jax.transitions.objective import Objective


class Term(Protocol):
    """A term of the loss: a frozen dataclass of settings, a field of `Objective`.

    Auxiliary networks learn the samples that the term judges; no gradient of theirs reaches the student, nor one of the
    student's reaches them.
    """

    @property
    def weight(self) -> float: ...  # 0: there is no such term

    @property
    def asks_teacher(self) -> bool: ...

    @property
    def auxiliary(self) -> Mapping[str, Auxiliary]: ...

    @property
    def heads(self) -> Mapping[str, Heads]: ...  # those of the auxiliary networks that are heads

    def __call__(
        self,
        objective: "Objective",
        nets: Mapping[str, Net],
        examples: Examples,
        x: jax.Array,
        step: jax.Array,
        key: jax.Array,
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Returns the student's loss (B,) without weight, that of the auxiliary networks (B,), and metrics (B,).

        Args:
            objective: The objective that the term belongs to.
            nets: The networks by name.
            examples: A batch of B examples.
            x: Samples (B, …) of the student, which get the gradient.
            step: The training step, a scalar.
            key: A random key.
        """
        ...

    def auxiliary_loss(
        self,
        objective: "Objective",
        nets: Mapping[str, Net],
        examples: Examples,
        x: jax.Array,
        step: jax.Array,
        key: jax.Array,
    ) -> jax.Array:
        """Returns the loss (B,) of the auxiliary networks alone; arguments are those of a call."""
        ...


def add_terms(
    objective: "Objective",
    nets: Mapping[str, Net],
    examples: Examples,
    step: jax.Array,
    key: jax.Array,
    loss: jax.Array,
    metrics: Mapping[str, jax.Array],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns an objective's own losses and metrics with those of its terms."""
    metrics = dict(metrics)
    if not objective.terms:
        return loss, metrics
    rollout_key, *keys = jax.random.split(key, 1 + len(objective.terms))
    x = objective.rollout(objective, nets, examples, rollout_key)
    for term, term_key in zip(objective.terms, keys, strict=True):
        of_student, of_auxiliary, more = term(objective, nets, examples, x, step, term_key)
        loss, metrics = loss + term.weight * of_student + of_auxiliary, metrics | more
    return loss, metrics


def auxiliary_loss(
    objective: "Objective", nets: Mapping[str, Net], examples: Examples, step: jax.Array, key: jax.Array
) -> jax.Array:
    """Returns the losses (B,) of the auxiliary networks of all terms, on fresh samples of the student."""
    rollout_key, *keys = jax.random.split(key, 1 + len(objective.terms))
    x = jax.lax.stop_gradient(objective.rollout(objective, nets, examples, rollout_key))
    losses = [
        term.auxiliary_loss(objective, nets, examples, x, step, term_key)
        for term, term_key in zip(objective.terms, keys, strict=True)
    ]
    return sum(losses[1:], losses[0])
