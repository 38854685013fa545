"""A reward of the student's samples: the gradient of r goes through the last jump into the student.

    λ (−r(x̂))     or     λ max(0, m − r(x̂)), with a margin m

One jump makes x̂, as in RG-LCD (arXiv 2403.11027), or few of which the last alone is differentiated, as in DRaFT-1
(2309.17400); ReFL (2304.05977) has the margin. Nothing in r keeps x̂ near data: followed without bound, it is raised by
images that nobody but r likes. So the term stands beside the objective's own loss on data, as ReFL's beside that of
pretraining and RG-LCD's beside that of distillation, or beside `objective.matching` with the start for a teacher
(Diff-Instruct*, 2410.20898). λ says how far x̂ may go.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from tim_jax.transitions.derivative import Net
from tim_jax.transitions.rewards import OF_SCORES, REWARDS
from tim_jax.types import Auxiliary, Examples, Heads

if TYPE_CHECKING:
    from tim_jax.transitions.objective import Objective

UNUSED = {
    ("objective.reward.name", "objective.reward.margin", "objective.reward.classifier"): (
        "objective.reward.weight is 0",
        lambda c: not c.objective.reward.weight,
    ),
    ("objective.reward.classifier",): (
        "objective.reward.name is not one that a classifier judges",
        lambda c: c.objective.reward.name not in OF_SCORES,
    ),
}
CLASSIFIER = "classifier"  # the name of the frozen network


@dataclasses.dataclass(frozen=True)
class Reward:
    """Settings of the term above."""

    weight: float = 0.0  # λ; 0: none
    name: str = "brightness"  # r: brightness, classifier, similarity, or a name that a plugin adds
    margin: float = 0.0  # m, above which a reward has no gradient; 0: none
    classifier: str = ""  # the file of the classifier that judges, as python -m tim_jax.classify writes it

    @property
    def networks(self) -> tuple[str, ...]:
        """The names of the frozen networks that it needs."""
        return (CLASSIFIER,) if self.weight and self.name in OF_SCORES else ()

    @property
    def asks_teacher(self) -> bool:
        return False

    @property
    def auxiliary(self) -> dict[str, Auxiliary]:
        return {}

    @property
    def heads(self) -> dict[str, Heads]:
        return {}

    def check(self) -> None:
        """Raises ValueError, naming key and value, for invalid settings."""
        if self.weight < 0:
            raise ValueError(f"objective.reward.weight is {self.weight}; it must be at least 0")
        if self.name not in (known := REWARDS | OF_SCORES):
            raise ValueError(f"objective.reward.name is {self.name!r}; it must be one of {', '.join(known)}")

    def __call__(
        self,
        objective: "Objective",
        nets: Mapping[str, Net],
        examples: Examples,
        x: jax.Array,
        step: jax.Array,
        key: jax.Array,
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """See `Term`."""
        if self.name in OF_SCORES:
            scores: Any = nets[CLASSIFIER](x)
            reward = OF_SCORES[self.name](scores, examples.condition)
        else:
            reward = REWARDS[self.name](jnp.clip(x, -1, 1), examples.condition)
        loss = jnp.maximum(self.margin - reward, 0) if self.margin else -reward
        return loss, jnp.zeros_like(reward), dict(reward=reward)

    def auxiliary_loss(
        self,
        objective: "Objective",
        nets: Mapping[str, Net],
        examples: Examples,
        x: jax.Array,
        step: jax.Array,
        key: jax.Array,
    ) -> jax.Array:
        """See `Term`: there are no auxiliary networks."""
        return jnp.zeros(len(x), x.dtype)
