"""Score distillation beside consistency (rCM, arXiv 2510.08431).

The student's few jumps from noise give x̂, which is noised again to x_t = α_t x̂ + σ_t ε. There the teacher's x̂_T
knows
the data's score and a network trained beside the student, x̂_S, that of the student's own samples:

    λ ‖x̂ − sg(x̂ − (x̂_S − x̂_T)/m)‖²,   m the mean of |x̂ − x̂_T|,        to the student
    ‖F_S(x_t, t, t) − (α̂_t sg x̂ + σ̂_t ε)‖²                             to the score

m as in distribution matching (arXiv 2311.18828). Neither term's gradient reaches the other's network.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from tim_jax.transitions.consistency import row_mean
from tim_jax.transitions.derivative import Net, query
from tim_jax.transitions.jump import data_and_noise, expand, interpolate, jump, prediction_target
from tim_jax.transitions.objective import Objective
from tim_jax.types import Examples


@dataclasses.dataclass(frozen=True)
class Score:
    """The score distillation term. Each example has its own number of jumps, and the last one has a gradient."""

    weight: float = 0.01  # λ of score distillation
    max_jumps: int = 2  # of the samples that it looks at

    def check(self) -> None:
        """Raises ValueError for what cannot be."""
        if self.weight < 0:
            raise ValueError(f"objective.score.weight is {self.weight}; it must be at least 0")
        if self.max_jumps < 1:
            raise ValueError(f"objective.score.max_jumps is {self.max_jumps}; it must be at least 1")


@dataclasses.dataclass(frozen=True)
class ScoreRegularised(Objective):
    """An Objective with both terms above. nets also holds "score", which they train."""

    score: Score = Score()  # rcm alone has it

    @property
    def parts(self) -> tuple[str, ...]:
        return ("score",)

    @property
    def learns_from(self) -> tuple[str, ...]:
        return self.teacher.names

    def check(self) -> None:
        super().check()
        self.score.check()
        if self.input_guidance.active:
            raise ValueError(
                f"objective.input_guidance.max_scale is {self.input_guidance.max_scale}; it must be 1 with score "
                "distillation"
            )

    def loss(self, nets, rows, t, r, step, key=None):
        own_key, key = jax.random.split(key)
        loss, metrics = super().loss(nets, rows, t, r, step, own_key)
        distillation, fit = self.score_terms(nets, rows, key)
        metrics |= dict(score_distillation=distillation, score_error=fit)
        return loss + self.score.weight * distillation + fit, metrics

    def score_terms(self, nets: Mapping[str, Net], rows: Examples, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(B,) of each term above, the first without λ."""
        transport = self.transport
        rollout_key, time_key, noise_key = jax.random.split(key, 3)
        x = self.rollout(nets, rows, rollout_key)
        t = self.times.draw_t(transport, time_key, (len(x),), positions=x.shape[1] * x.shape[2])
        noise = jax.random.normal(noise_key, x.shape, x.dtype)
        sample = jax.lax.stop_gradient(x)
        x_t = interpolate(transport, sample, noise, t)
        (output,) = nets["score"]((query(transport, x_t, t, t, rows.condition),))
        fit = row_mean((output.F - prediction_target(transport, sample, noise, t)) ** 2)
        x_score, _ = data_and_noise(transport, x_t, jax.lax.stop_gradient(output.F), t)
        x_teacher, _ = data_and_noise(transport, x_t, self.teacher(nets, transport, x_t, t, rows), t)
        size = expand(row_mean(jnp.abs(sample - x_teacher)), x) + 1e-6
        distillation = row_mean((x - (sample - (x_score - x_teacher) / size)) ** 2)
        return distillation, fit

    def rollout(self, nets: Mapping[str, Net], rows: Examples, key: jax.Array) -> jax.Array:
        """x̂ (B, …): noise, and 1 … `score.max_jumps` jumps to T_min, noised again between to levels equally far
        apart."""
        transport, most = self.transport, self.score.max_jumps
        count_key, *noise_keys = jax.random.split(key, 1 + most)
        count = jax.random.randint(count_key, (len(rows.x),), 1, most + 1)
        end = jnp.full(len(rows.x), transport.T_min, rows.x.dtype)
        t = jnp.full_like(end, transport.T_max)
        highest = transport.level(t)
        x_t = transport.sigma(expand(t, rows.x)) * jax.random.normal(noise_keys[0], rows.x.shape, rows.x.dtype)

        def data(x_t, t):
            (output,) = nets["online"]((query(transport, x_t, t, end, rows.condition),))
            return jump(transport, x_t, output.F, t, end) / transport.alpha(expand(end, x_t))

        for k, noise_key in enumerate(noise_keys[1:], 1):
            goes_on = k < count
            then = transport.time_of_level(highest * (1 - k / count))
            noise = jax.random.normal(noise_key, rows.x.shape, rows.x.dtype)
            again = interpolate(transport, data(x_t, t), noise, then)
            x_t = jax.lax.stop_gradient(jnp.where(expand(goes_on, x_t), again, x_t))
            t = jnp.where(goes_on, then, t)
        return data(x_t, t)
