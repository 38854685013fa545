"""Samples of the student by few jumps, which all terms of a step look at."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from tim_jax.transitions.derivative import Net, query
from tim_jax.transitions.jump import expand, interpolate, jump
from tim_jax.transitions.noise import draw_noise
from tim_jax.types import Examples

if TYPE_CHECKING:
    from tim_jax.transitions.objective import Objective

UNUSED = {
    ("objective.rollout.max_jumps",): ("no term looks at samples", lambda c: not looks_at_samples(c.objective)),
}


def looks_at_samples(section) -> bool:
    """Returns whether a section `objective` has a term that looks at samples of the student."""
    return bool(section.matching.weight or section.reward.weight)


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Samples x̂ of 1 … max_jumps jumps from noise to T_min; an example has its own number, uniformly drawn."""

    max_jumps: int = 1  # of which the last alone has a gradient

    def check(self) -> None:
        """Raises ValueError, naming key and value, for invalid settings."""
        if self.max_jumps < 1:
            raise ValueError(f"objective.rollout.max_jumps is {self.max_jumps}; it must be at least 1")

    def __call__(
        self, objective: "Objective", nets: Mapping[str, Net], examples: Examples, key: jax.Array
    ) -> jax.Array:
        """Returns samples x̂ (B, …), which are noised again between two jumps, to levels that lie equally far apart."""
        transport, x = objective.transport, examples.x
        count_key, *noise_keys = jax.random.split(key, 1 + self.max_jumps)
        count = jax.random.randint(count_key, (len(x),), 1, self.max_jumps + 1)
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
