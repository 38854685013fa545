"""Distribution matching alone: a student of one to four jumps, which learns by terms on its own samples (DMD2).

There is no loss of transitions. What the student is trained with are `objective.matching` and the other terms that may
be there (`terms/`); of the data they need shapes and conditions, and only an adversary more. Samples are drawn as in a
rollout: by a jump to T_min, and noised again where further jumps follow. A student starts from its teacher's weights
(`start.checkpoint`): the terms compare what teacher and score make of its samples, which says little where these are
nothing like the data.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from tim_jax.transitions.annealing import Annealing
from tim_jax.transitions.derivative import Net
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.objectives.kinds import TARGET_KEYS
from tim_jax.types import Examples

UNUSED = {
    (
        *TARGET_KEYS,
        *(f"objective.refresh.{field.name}" for field in dataclasses.fields(Annealing)),
        *(f"times.{name}" for name in ("share_equal", "share_min", "single_equal", "intervals")),
        "data.paired_noise",
    ): (
        "objective.name is 'distribution_matching', which has no target F*",
        lambda c: c.objective.name == "distribution_matching",
    ),
}


@dataclasses.dataclass(frozen=True)
class DistributionMatching(Objective):
    """An Objective of terms on the student's samples and nothing else; `times` are those that samples are noised to."""

    def check(self) -> None:
        super().check()
        if not self.terms:
            raise ValueError(
                f"objective.matching.weight is {self.matching.weight}; it must be above 0 where no other term is there "
                "for the student to learn by"
            )
        if self.velocity != "data":
            raise ValueError(f"objective.velocity is {self.velocity!r}; it must be 'data' where no velocity is learned")

    def draw(
        self, key: jax.Array, count: int, positions: int, batch: jax.Array | int = 0
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (t, r), each (count,): T_max and T_min."""
        return jnp.full(count, self.transport.T_max), jnp.full(count, self.transport.T_min)

    def loss(
        self,
        nets: Mapping[str, Net],
        examples: Examples,
        t: jax.Array,
        r: jax.Array,
        step: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns losses and errors that are 0."""
        zero, transport = jnp.zeros_like(t), self.transport
        metrics = dict(error=zero, denoising=zero, tangent=zero, alignment=zero, t=t, r=r)
        return zero, metrics | dict(level_t=transport.level(t), level_r=transport.level(r))
