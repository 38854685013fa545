"""Distribution matching: the student's samples drift to where the teacher finds them more likely (DMD2, rCM).

A sample x̂ of the student is noised again to x_t = α_t x̂ + σ_t ε. There the teacher's x̂_T knows the score of the data,
and that of an auxiliary network, x̂_S, the score of the student's own samples. The student learns by

    vsd   ½ mean (x̂ − sg(x̂ − h (x̂_S − x̂_T)/m))²,   m the mean of |x̂ − x̂_T|       (arXiv 2311.18828, 2405.14867)
    sim   Σ y (x̂_S − x̂)/√(‖y‖² + c²),   y = x̂_T − x̂_S, with the gradient through x_t       (arXiv 2410.16794)

where h belongs to a divergence (`divergences.py`), and the auxiliary network by mean (F_S(x_t, t, t) − F*)² on samples
without gradient, F* = α̂_t x̂ + σ̂_t ε. Means and sums are over the values of an example.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from tim_jax.transitions import prediction
from tim_jax.transitions.consistency import example_mean
from tim_jax.transitions.derivative import Net, query
from tim_jax.transitions.jump import data_and_noise, determinant, expand, interpolate
from tim_jax.transitions.noise import draw_noise
from tim_jax.transitions.terms.constant import constant
from tim_jax.transitions.terms.divergences import DIVERGENCES, density_ratio, importance, per_bin
from tim_jax.transitions.times import positions
from tim_jax.types import Auxiliary, Examples, Heads

if TYPE_CHECKING:
    from tim_jax.transitions.objective import Objective

SCORE = "score"  # the name of the auxiliary network
GRADIENTS = ("vsd", "sim")
FITS = ("F", "x")


def variational(x: jax.Array, x_score: jax.Array, x_teacher: jax.Array, h: jax.Array) -> jax.Array:
    """Returns the losses (B,) of 'vsd' for samples (B, …), what score and teacher make of them, and weights h (B,)."""
    size = example_mean(jnp.abs(x - x_teacher)) + 1e-6
    aim = jax.lax.stop_gradient(x - expand(h / size, x) * (x_score - x_teacher))
    return 0.5 * example_mean((x - aim) ** 2)


def implicit(x: jax.Array, x_score: jax.Array, x_teacher: jax.Array, c: float) -> jax.Array:
    """Returns the losses (B,) of 'sim', of mean 0 where the score is exact; arguments as above."""
    y, axes = x_teacher - x_score, tuple(range(1, x.ndim))
    return jnp.sum(y * (x_score - x), axes) / jnp.sqrt(jnp.sum(y**2, axes) + c**2)


@dataclasses.dataclass(frozen=True)
class Matching:
    """Settings of the terms above."""

    weight: float = 0.0  # of the student's term; 0: none
    gradient: str = "vsd"  # vsd (variational score distillation), sim (score implicit matching)
    # that "vsd" lowers: rkl (reverse KL) or, by a discriminator's density ratio, kl, js (Jensen–Shannon), sf (softened
    # reverse KL), neyman, sh (squared Hellinger), jf (Jeffreys)
    divergence: str = "rkl"
    bins: int = 0  # of equal ranges of the noise level, in each of which the density ratio has the mean 1; 0: none
    offset: float = 0.03  # c of "sim"
    # Times of samples are drawn as `times` says, but for these shares of the draws at its ends.
    min_quantile: float = 0.0
    max_quantile: float = 1.0
    fit: str = "F"  # what the auxiliary network's error is one of: F, or x (the data), (σ_t/C_t)² times as large
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
        for name, known in (("gradient", GRADIENTS), ("divergence", DIVERGENCES), ("fit", FITS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"objective.matching.{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}"
                )
        for name in ("weight", "bins"):
            if getattr(self, name) < 0:
                raise ValueError(f"objective.matching.{name} is {getattr(self, name)}; it must be at least 0")
        if self.offset <= 0:
            raise ValueError(f"objective.matching.offset is {self.offset}; it must be above 0")
        if not 0 <= self.min_quantile < self.max_quantile <= 1:
            raise ValueError(
                f"objective.matching.min_quantile, objective.matching.max_quantile are {self.min_quantile}, "
                f"{self.max_quantile}; they must be ordered and lie in [0, 1]"
            )
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
        return self.compare(objective, nets, examples, x, *self.draw(objective, x, key))

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
        return self.learn(objective, nets[SCORE], examples, x, *self.draw(objective, x, key))[1]

    def draw(self, objective: "Objective", x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draws times (B,) and noise (B, …) for samples x (B, …)."""
        time_key, noise_key = jax.random.split(key)
        u = jax.random.uniform(time_key, (len(x),), minval=self.min_quantile, maxval=self.max_quantile)
        t = objective.times.quantile(objective.transport, u, positions(x))
        return t, draw_noise(objective.transport.augmented_dimensions, noise_key, x.shape, x.dtype)

    def compare(
        self,
        objective: "Objective",
        nets: Mapping[str, Net],
        examples: Examples,
        x: jax.Array,
        t: jax.Array,
        noise: jax.Array,
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Returns what a call does, for samples (B, …) noised with given noise (B, …) to given times (B,)."""
        transport, sample = objective.transport, jax.lax.stop_gradient(x)
        F, error = self.learn(objective, nets[SCORE], examples, sample, t, noise)
        through = self.gradient == "sim"
        x_t = interpolate(transport, x if through else sample, noise, t)
        if through or self.network.average:  # otherwise one pass does for both losses
            (output,) = constant(nets, SCORE)((query(transport, x_t, t, t, examples.condition),))
            F = output.F
        F_teacher = objective.teacher.predict(nets, transport, x_t, t, examples)
        x_score, x_teacher = (data_and_noise(transport, x_t, each, t)[0] for each in (F, F_teacher))
        if through:
            loss = implicit(x, x_score, x_teacher, self.offset)
        else:
            loss = variational(x, x_score, x_teacher, self.importance(objective, nets, x_t, t, examples))
        return loss, error, dict(score_distillation=loss, score_error=error)

    def importance(
        self, objective: "Objective", nets: Mapping[str, Net], x_t: jax.Array, t: jax.Array, examples: Examples
    ) -> jax.Array:
        """Returns the weights h (B,) of samples at states (B, …), by the discriminator's density ratio."""
        if self.divergence == "rkl":
            return jnp.ones_like(t)
        ratio = density_ratio(objective.adversary.logits(objective, nets, x_t, t, examples))
        if self.bins:
            ratio, _ = per_bin(ratio, objective.transport.level(t), jnp.zeros(self.bins, ratio.dtype))
        return importance(self.divergence, ratio)

    def learn(
        self, objective: "Objective", net: Net, examples: Examples, x: jax.Array, t: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the auxiliary network's prediction (B, …) at samples that are noised, and its losses (B,)."""
        transport = objective.transport
        x_t = interpolate(transport, x, noise, t)
        (output,) = net((query(transport, x_t, t, t, examples.condition),))
        error = example_mean((output.F - prediction.target(transport, x, noise, t)) ** 2)
        return output.F, error * (transport.sigma(t) / determinant(transport, t)) ** 2 if self.fit == "x" else error


def _keys(*names: str) -> tuple[str, ...]:
    return tuple(f"objective.matching.{name}" for name in names)


UNUSED = {
    _keys(
        *(field.name for field in dataclasses.fields(Matching) if field.name not in ("weight", "network")),
        *(f"network.{field.name}" for field in dataclasses.fields(Auxiliary)),
    ): ("objective.matching.weight is 0", lambda c: not c.objective.matching.weight),
    _keys("offset"): ("objective.matching.gradient is not 'sim'", lambda c: c.objective.matching.gradient != "sim"),
    _keys("divergence", "bins"): (
        "objective.matching.gradient is 'sim'",
        lambda c: c.objective.matching.gradient == "sim",
    ),
    _keys("bins"): (
        "objective.matching.divergence is 'rkl', whose weights are 1",
        lambda c: c.objective.matching.divergence == "rkl",
    ),
    _keys("min_quantile", "max_quantile"): ("times.distribution is 'max'", lambda c: c.times.distribution == "max"),
}
