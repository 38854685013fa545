"""A number that changes over training. It depends on the step alone, so that a run that is resumed goes on exactly.

With u = (step − start)/(end − start) it is `initial` up to u = 0, `final` from u = 1 on, and in between

    linear       final + (initial − final) (1 − u)
    cosine       final + (initial − final) (1 + cos πu)/2
    logarithmic  final + (initial − final) (1 − log₁₀(1 + 9u))
    sigmoid      final + (initial − final) / (1 + e^{γ(u − ½)})
    exponential  initial (final/initial)^u

Values below `clamp` then count as 0, and those above 1 − `clamp` as 1 (α-Flow, arXiv 2510.20771).
"""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# How much of the way from the final value back to the initial one is left at u in [0, 1]; γ is that of the sigmoid.
SCHEDULES: dict[str, Callable[[jax.Array, float], jax.Array]] = {
    "constant": lambda u, gamma: jnp.zeros_like(u),
    "linear": lambda u, gamma: 1 - u,
    "cosine": lambda u, gamma: (1 + jnp.cos(jnp.pi * u)) / 2,
    "logarithmic": lambda u, gamma: 1 - jnp.log10(1 + 9 * u),
    "sigmoid": lambda u, gamma: jax.nn.sigmoid(gamma * (0.5 - u)),
    "exponential": lambda u, gamma: 1 - u,  # of the logarithm
}


def _unused(path: str) -> dict[tuple[str, ...], tuple[str, Callable[[Any], bool]]]:
    """The rules of a number whose keys begin with `path`."""
    schedule = operator.attrgetter(f"{path}.schedule")
    moves = ("initial", "start_step", "end_step", "start_share", "end_share")
    return {
        tuple(f"{path}.{name}" for name in moves): (
            f"{path}.schedule is 'constant'",
            lambda c: schedule(c) == "constant",
        ),
        (f"{path}.gamma",): (f"{path}.schedule is not 'sigmoid'", lambda c: schedule(c) != "sigmoid"),
    }


UNUSED = _unused("objective.bootstrap.alpha") | _unused("objective.refresh")


@dataclasses.dataclass(frozen=True)
class Annealing:
    """A number in [0, 1] by the formulas above."""

    schedule: str = "constant"  # constant, linear, cosine, logarithmic, sigmoid, exponential
    initial: float = 1.0
    final: float = 0.0  # with 'constant' it always has this value
    start_step: int = 0  # until which it has its initial value
    end_step: int = 0  # from which on it has its final one
    start_share: float = 0.0  # start and end as shares of all training steps, in place of start_step and end_step
    end_share: float = 0.0
    gamma: float = 25.0  # γ, the steepness of the sigmoid
    clamp: float = 0.0  # how near to 0 or 1 it counts as 0 or 1

    def check(self, name: str) -> None:
        """Raises ValueError, naming key and value, for invalid settings. name: the path of the keys."""
        if self.schedule not in SCHEDULES:
            raise ValueError(f"{name}.schedule is {self.schedule!r}; it must be one of {', '.join(SCHEDULES)}")
        for key in ("initial", "final", "start_share", "end_share"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{name}.{key} is {getattr(self, key)}; it must lie in [0, 1]")
        if not 0 <= self.clamp < 0.5:
            raise ValueError(f"{name}.clamp is {self.clamp}; it must lie in [0, 0.5)")
        if self.gamma <= 0:
            raise ValueError(f"{name}.gamma is {self.gamma}; it must be above 0")
        if self.schedule == "constant":
            return
        if self.schedule == "exponential" and not (self.initial and self.final):
            raise ValueError(
                f"{name}.initial, {name}.final are {self.initial}, {self.final}; they must be above 0 for 'exponential'"
            )
        if (self.start_step or self.end_step) and (self.start_share or self.end_share):
            raise ValueError(
                f"{name}.start_step, {name}.end_step are {self.start_step}, {self.end_step}; they must be 0 with "
                "start_share or end_share"
            )
        unit = "share" if self.end_share or self.start_share else "step"
        start, end = getattr(self, f"start_{unit}"), getattr(self, f"end_{unit}")
        if not 0 <= start < end:
            raise ValueError(
                f"{name}.start_{unit}, {name}.end_{unit} are {start}, {end}; they must be at least 0 and ascend"
            )

    @property
    def vanishes(self) -> bool:
        """Whether it is ever 0."""
        least = self.final if self.schedule == "constant" else min(self.initial, self.final)
        return least == 0 or least < self.clamp

    @property
    def end(self) -> int:
        """The step from which on it does not change."""
        return 0 if self.schedule == "constant" else self.end_step

    def following(self, steps: int) -> "Annealing":
        """Returns these settings for so many steps of training: with steps in place of shares of them."""
        if not (self.start_share or self.end_share):
            return self
        start, end = (round(share * steps) for share in (self.start_share, self.end_share))
        return dataclasses.replace(self, start_step=start, end_step=max(end, start + 1), start_share=0.0, end_share=0.0)

    def __call__(self, step: jax.Array) -> jax.Array:
        """Returns the number, a scalar, at a training step, a scalar."""
        assert not (self.start_share or self.end_share), "`following` says how many steps these are"
        step = jnp.asarray(step, float)
        u = jnp.clip((step - self.start_step) / max(self.end - self.start_step, 1), 0, 1)
        left = SCHEDULES[self.schedule](u, self.gamma)
        if self.schedule == "exponential":
            value = self.initial**left * self.final ** (1 - left)
        else:
            value = self.final + (self.initial - self.final) * left
        if self.schedule != "constant":  # the sigmoid comes near to its ends
            value = jnp.where(u <= 0, self.initial, jnp.where(u >= 1, self.final, value))
        return jnp.where(value < self.clamp, 0.0, jnp.where(value > 1 - self.clamp, 1.0, value))
