"""Distribution matching: the student's samples drift to where the teacher finds them more likely (DMD2, rCM).

A sample x̂ of the student is noised again to x_t = α_t x̂ + σ_t ε. There the teacher's x̂_T knows the score of the data,
and that of an auxiliary network, x̂_S, the score of the student's own samples:

    ½ ‖x̂ − sg(x̂ − (x̂_S − x̂_T)/m)‖²,   m the mean of |x̂ − x̂_T|,        trains the student
    ‖F_S(x_t, t, t) − (α̂_t sg x̂ + σ̂_t ε)‖²                             trains the auxiliary network

both of them means over the values of an example (arXiv 2311.18828, 2405.14867).
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from tim_jax.transitions import prediction
from tim_jax.transitions.consistency import example_mean
from tim_jax.transitions.derivative import Net, query
from tim_jax.transitions.jump import data_and_noise, expand, interpolate
from tim_jax.transitions.noise import draw_noise
from tim_jax.transitions.times import positions
from tim_jax.types import Auxiliary, Examples, Heads

if TYPE_CHECKING:
    from tim_jax.transitions.objective import Objective

UNUSED = {
    tuple(f"objective.matching.network.{field.name}" for field in dataclasses.fields(Auxiliary)): (
        "objective.matching.weight is 0",
        lambda c: not c.objective.matching.weight,
    ),
}
SCORE = "score"  # the name of the auxiliary network


@dataclasses.dataclass(frozen=True)
class Matching:
    """Settings of the terms above."""

    weight: float = 0.0  # of the student's term; 0: none
    network: Auxiliary = Auxiliary()  # how x̂_S is trained

    @property
    def asks_teacher(self) -> bool:
        return True

    @property
    def heads(self) -> dict[str, Heads]:
        return {}

    @property
    def auxiliary(self) -> dict[str, Auxiliary]:
        return {SCORE: self.network}

    def check(self) -> None:
        """Raises ValueError, naming key and value, for invalid settings."""
        if self.weight < 0:
            raise ValueError(f"objective.matching.weight is {self.weight}; it must be at least 0")
        self.network.check("objective.matching.network")

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
        transport, sample = objective.transport, jax.lax.stop_gradient(x)
        t, noise = self.draw(objective, sample, key)
        x_t = interpolate(transport, sample, noise, t)
        F, error = self.fit(objective, nets[SCORE], examples, sample, t, noise)
        x_score, _ = data_and_noise(transport, x_t, jax.lax.stop_gradient(F), t)
        x_teacher, _ = data_and_noise(transport, x_t, objective.teacher(nets, transport, x_t, t, examples), t)
        size = expand(example_mean(jnp.abs(sample - x_teacher)), x) + 1e-6
        distillation = 0.5 * example_mean((x - (sample - (x_score - x_teacher) / size)) ** 2)
        return distillation, error, dict(score_distillation=distillation, score_error=error)

    def auxiliary_loss(
        self,
        objective: "Objective",
        nets: Mapping[str, Net],
        examples: Examples,
        x: jax.Array,
        step: jax.Array,
        key: jax.Array,
    ) -> jax.Array:
        """See `Term`."""
        return self.fit(objective, nets[SCORE], examples, x, *self.draw(objective, x, key))[1]

    def draw(self, objective: "Objective", x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draws times (B,) and noise (B, …) for samples x (B, …)."""
        time_key, noise_key = jax.random.split(key)
        t = objective.times.draw_t(objective.transport, time_key, (len(x),), positions(x))
        return t, draw_noise(objective.transport.augmented_dimensions, noise_key, x.shape, x.dtype)

    def fit(
        self, objective: "Objective", net: Net, examples: Examples, x: jax.Array, t: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the auxiliary network's prediction (B, …) at samples that are noised, and its losses (B,)."""
        x_t = interpolate(objective.transport, x, noise, t)
        (output,) = net((query(objective.transport, x_t, t, t, examples.condition),))
        return output.F, example_mean((output.F - prediction.target(objective.transport, x, noise, t)) ** 2)
