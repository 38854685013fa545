"""Score distillation next to consistency (rCM, arXiv 2510.08431).

The student's few jumps from noise give x̂, which is noised again to x_t = α_t x̂ + σ_t ε. There the teacher's x̂_T knows
the score of the data, and that of an auxiliary network, x̂_S, the score of the student's own samples:

    λ ‖x̂ − sg(x̂ − (x̂_S − x̂_T)/m)‖²,   m the mean of |x̂ − x̂_T|,        trains the student
    ‖F_S(x_t, t, t) − (α̂_t sg x̂ + σ̂_t ε)‖²                             trains the auxiliary network

m is that of distribution matching (arXiv 2311.18828). The gradient of neither term reaches the other's network.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from tim_jax.transitions import prediction
from tim_jax.transitions.consistency import example_mean
from tim_jax.transitions.derivative import Net, query
from tim_jax.transitions.jump import data_and_noise, expand, interpolate, jump
from tim_jax.transitions.noise import draw_noise
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.times import positions
from tim_jax.types import Examples


@dataclasses.dataclass(frozen=True)
class Score:
    """Score distillation on samples of few jumps.

    Each example has its own number of jumps, uniform in 1 … max_jumps, and only the last one has a gradient.
    """

    weight: float = 0.01  # λ of score distillation
    max_jumps: int = 2  # of the samples that it looks at

    def check(self) -> None:
        """Raises ValueError, naming key and value, for invalid settings."""
        if self.weight < 0:
            raise ValueError(f"objective.score.weight is {self.weight}; it must be at least 0")
        if self.max_jumps < 1:
            raise ValueError(f"objective.score.max_jumps is {self.max_jumps}; it must be at least 1")


@dataclasses.dataclass(frozen=True)
class ScoreRegularised(Objective):
    """An Objective with both terms above, which train nets["score"], too."""

    score: Score = Score()  # rcm alone has it

    @property
    def auxiliary(self) -> tuple[str, ...]:
        return ("score",)

    @property
    def teachers(self) -> tuple[str, ...]:
        return self.teacher.names

    def check(self) -> None:
        super().check()
        self.score.check()
        if self.input_guidance.active:
            raise ValueError(
                f"objective.input_guidance.max_scale is {self.input_guidance.max_scale}; it must be 1 with score "
                "distillation"
            )

    def loss(
        self,
        nets: Mapping[str, Net],
        examples: Examples,
        t: jax.Array,
        r: jax.Array,
        step: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        assert key is not None, "rollouts are drawn with a key"
        loss_key, score_key = jax.random.split(key)
        loss, metrics = super().loss(nets, examples, t, r, step, loss_key)
        distillation, error = self.score_terms(nets, examples, score_key)
        metrics |= dict(score_distillation=distillation, score_error=error)
        return loss + self.score.weight * distillation + error, metrics

    def score_terms(self, nets: Mapping[str, Net], examples: Examples, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the terms of the student, without λ, and of the auxiliary network, each (B,)."""
        transport = self.transport
        rollout_key, time_key, noise_key = jax.random.split(key, 3)
        x = self.rollout(nets, examples, rollout_key)
        t = self.times.draw_t(transport, time_key, (len(x),), positions(x))
        noise = draw_noise(transport.augmented_dimensions, noise_key, x.shape, x.dtype)
        sample = jax.lax.stop_gradient(x)
        x_t = interpolate(transport, sample, noise, t)
        (output,) = nets["score"]((query(transport, x_t, t, t, examples.condition),))
        error = example_mean((output.F - prediction.target(transport, sample, noise, t)) ** 2)
        x_score, _ = data_and_noise(transport, x_t, jax.lax.stop_gradient(output.F), t)
        x_teacher, _ = data_and_noise(transport, x_t, self.teacher(nets, transport, x_t, t, examples), t)
        size = expand(example_mean(jnp.abs(sample - x_teacher)), x) + 1e-6
        distillation = example_mean((x - (sample - (x_score - x_teacher) / size)) ** 2)
        return distillation, error

    def rollout(self, nets: Mapping[str, Net], examples: Examples, key: jax.Array) -> jax.Array:
        """Returns samples x̂ (B, …) of the student, from noise by 1 … `score.max_jumps` jumps to T_min.

        Between two jumps the sample is noised again, to levels that lie equally far apart.
        """
        transport, max_jumps, x = self.transport, self.score.max_jumps, examples.x
        count_key, *noise_keys = jax.random.split(key, 1 + max_jumps)
        count = jax.random.randint(count_key, (len(x),), 1, max_jumps + 1)
        end = jnp.full(len(x), transport.T_min, x.dtype)
        t = jnp.full_like(end, transport.T_max)
        highest = transport.level(t)
        law = transport.augmented_dimensions
        x_t = transport.sigma(expand(t, x)) * draw_noise(law, noise_keys[0], x.shape, x.dtype)

        def data(x_t: jax.Array, t: jax.Array) -> jax.Array:
            (output,) = nets["online"]((query(transport, x_t, t, end, examples.condition),))
            return jump(transport, x_t, output.F, t, end) / transport.alpha(expand(end, x_t))

        for k, noise_key in enumerate(noise_keys[1:], 1):
            continues = k < count
            then = transport.time_of_level(highest * (1 - k / count))
            noise = draw_noise(law, noise_key, x.shape, x.dtype)
            again = interpolate(transport, data(x_t, t), noise, then)
            x_t = jax.lax.stop_gradient(jnp.where(expand(continues, x_t), again, x_t))
            t = jnp.where(continues, then, t)
        return data(x_t, t)
