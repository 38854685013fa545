"""Consistency on a teacher's own trajectories, without images (TBCM; see `objectives.tbcm`).

The examples of a batch form groups of `trajectory_points`. Those of a group are states of one trajectory of the teacher
from noise, at times that fall from T_max. Each of them is trained on, with the teacher's x̂ and ε̂ there in place of data
and noise. So a step calls the teacher once for every example, as other distillation does. Noise and condition are those
of the first example of a group.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from tim_jax.transitions.derivative import Net
from tim_jax.transitions.groups import for_each, in_groups
from tim_jax.transitions.jump import data_and_noise, expand, jump
from tim_jax.transitions.objective import Objective
from tim_jax.types import Examples


@dataclasses.dataclass(frozen=True)
class TrajectoryConsistency(Objective):
    """An Objective on states of the teacher's trajectories; batches are multiples of the number of states."""

    trajectory_points: int = 8  # states of a trajectory of the teacher; tbcm and cmt have it

    @property
    def batch_multiple(self) -> int:
        return self.trajectory_points

    def check(self) -> None:
        super().check()
        if self.trajectory_points < 1:
            raise ValueError(f"objective.trajectory_points is {self.trajectory_points}; it must be at least 1")
        for name, only in (("velocity", "teacher"), ("alignment_weight", 0.0)):
            if getattr(self, name) != only:
                raise ValueError(f"objective.{name} is {getattr(self, name)!r}; it must be {only!r} without images")

    def draw(
        self, key: jax.Array, count: int, positions: int, batch: jax.Array | int = 0
    ) -> tuple[jax.Array, jax.Array]:
        """Draws (t, r), each (count,); within every group t falls, from T_max."""
        equal, minimal = self.times.flags(count, batch)
        pairs = self.times.pairs(self.transport, key, equal, positions)
        t, r = in_groups(pairs, self.trajectory_points)
        order = jnp.argsort(-t, axis=1)
        t, r = (jnp.take_along_axis(times, order, axis=1) for times in (t, r))
        t, r = t.at[:, 0].set(self.transport.T_max).reshape(-1), r.reshape(-1)
        return t, jnp.where(minimal, self.transport.T_min, jnp.where(equal, t, r))

    def distilled(self, nets: Mapping[str, Net], examples: Examples, t: jax.Array) -> Examples:
        """Returns the examples with the teacher's x̂ and ε̂ at the states of its trajectories."""
        transport, times = self.transport, t.reshape(-1, self.trajectory_points).T
        first = self.first_of_each(examples)

        def step(x: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            now, then = pair
            F = self.teacher(nets, transport, x, now, first)
            return jump(transport, x, F, now, then), data_and_noise(transport, x, F, now)

        start = expand(transport.sigma(times[0]), first.noise) * first.noise
        following = jnp.concatenate([times[1:], times[-1:]])
        _, predicted = jax.lax.scan(step, start, (times, following))
        x, noise = map(self.in_order, predicted)
        return self.with_conditions(examples, first)._replace(x=x, noise=noise)

    def first_of_each(self, examples: Examples) -> Examples:
        """Returns the first example of every group."""
        first: Examples = jax.tree.map(lambda x: x[:, 0], in_groups(examples, self.trajectory_points))
        return first

    def in_order(self, states: jax.Array) -> jax.Array:
        """Returns the states (points, groups, …) of all trajectories as the batch has them, (B, …)."""
        return states.swapaxes(0, 1).reshape(-1, *states.shape[2:])

    def with_conditions(self, examples: Examples, first: Examples) -> Examples:
        """Returns the examples with the conditions of the first example of their group."""
        names = ("condition", "null_condition", "is_null")
        return examples._replace(**{name: for_each(getattr(first, name), self.trajectory_points) for name in names})
