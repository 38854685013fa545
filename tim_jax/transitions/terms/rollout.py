"""Samples of the student by few jumps, which all terms of a step look at."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from tim_jax.transitions.derivative import Net, query
from tim_jax.transitions.jump import expand, interpolate, jump
from tim_jax.transitions.noise import draw_noise
from tim_jax.transitions.times import positions
from tim_jax.types import Examples

if TYPE_CHECKING:
    from tim_jax.transitions.objective import Objective

UNUSED = {
    ("objective.rollout.max_jumps", "objective.rollout.from_noise"): (
        "no term looks at samples",
        lambda c: not looks_at_samples(c.objective),
    ),
}


def looks_at_samples(section: Any) -> bool:
    """Returns whether a section `objective` has a term that looks at samples of the student."""
    return any(getattr(section, term).weight for term in ("matching", "adversary", "reward"))


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Samples x̂ of 1 … max_jumps jumps from noise to T_min; an example has its own number, uniformly drawn.

    Some of the examples may jump from data that are noised, to times as they are drawn for t.
    """

    max_jumps: int = 1  # of which the last alone has a gradient
    from_noise: float = 1.0  # share of examples that jump from noise, the others from noised data

    def check(self) -> None:
        """Raises ValueError, naming key and value, for invalid settings."""
        if self.max_jumps < 1:
            raise ValueError(f"objective.rollout.max_jumps is {self.max_jumps}; it must be at least 1")
        if not 0 <= self.from_noise <= 1:
            raise ValueError(f"objective.rollout.from_noise is {self.from_noise}; it must lie in [0, 1]")

    def __call__(
        self, objective: "Objective", nets: Mapping[str, Net], examples: Examples, key: jax.Array
    ) -> jax.Array:
        """Returns samples x̂ (B, …), which are noised again between two jumps, to levels that lie equally far apart."""
        transport, x, law = objective.transport, examples.x, objective.transport.augmented_dimensions
        count_key, start_key, *noise_keys = jax.random.split(key, 2 + self.max_jumps)
        count = jax.random.randint(count_key, (len(x),), 1, self.max_jumps + 1)
        t, data = self.start(objective, examples, start_key)
        highest = transport.level(t)
        x_t = interpolate(transport, data, draw_noise(law, noise_keys[0], x.shape, x.dtype), t)
        for k, noise_key in enumerate(noise_keys[1:], 1):
            continues = k < count
            then = transport.time_of_level(highest * (1 - k / count))
            noise = draw_noise(law, noise_key, x.shape, x.dtype)
            again = interpolate(transport, jump_to_data(objective, nets, examples, x_t, t), noise, then)
            x_t = jax.lax.stop_gradient(jnp.where(expand(continues, x_t), again, x_t))
            t = jnp.where(continues, then, t)
        return jump_to_data(objective, nets, examples, x_t, t)

    def start(self, objective: "Objective", examples: Examples, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draws the times (B,) at which jumps start. Returns them and the data (B, …) there, 0 for pure noise."""
        transport, x = objective.transport, examples.x
        t, nothing = jnp.full(len(x), transport.T_max, x.dtype), jnp.zeros_like(x)
        if self.from_noise == 1:
            return t, nothing
        which_key, time_key = jax.random.split(key)
        pure = jax.random.bernoulli(which_key, self.from_noise, (len(x),))
        drawn = objective.times.draw_t(transport, time_key, (len(x),), positions(x))
        return jnp.where(pure, t, drawn), jnp.where(expand(pure, x), nothing, x)


def jump_to_data(
    objective: "Objective", nets: Mapping[str, Net], examples: Examples, x_t: jax.Array, t: jax.Array
) -> jax.Array:
    """Returns the data (B, …) where jumps of the student from x_t (B, …) at t (B,) to T_min end."""
    transport = objective.transport
    end = jnp.full_like(t, transport.T_min)
    (output,) = nets["online"]((query(transport, x_t, t, end, examples.condition),))
    return jump(transport, x_t, output.F, t, end) / transport.alpha(expand(end, x_t))
