"""Consistency on a teacher's own trajectories: no images (TBCM; see `objectives.tbcm`).

Rows stand in groups of `trajectory_points`. Those of a group are states on one way of the teacher from noise, at times
that fall
from T_max, and each of them is trained on, with the teacher's x̂ and ε̂ there in place of data and noise. So a step
asks
the teacher once for every row, as other distillation does. Noise and condition are those of a group's first row.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tim_jax.transitions.jump import data_and_noise, expand, jump
from tim_jax.transitions.objective import Objective


@dataclasses.dataclass(frozen=True)
class TrajectoryConsistency(Objective):
    """Consistency at states of a trajectory; the examples of a batch are a multiple of their number."""

    trajectory_points: int = 8  # states of a trajectory of the teacher; tbcm alone has it

    @property
    def row_group(self) -> int:
        return self.trajectory_points

    def check(self) -> None:
        super().check()
        if self.trajectory_points < 1:
            raise ValueError(f"objective.trajectory_points is {self.trajectory_points}; it must be at least 1")
        for name, only in (("velocity", "teacher"), ("alignment_weight", 0.0)):
            if getattr(self, name) != only:
                raise ValueError(f"objective.{name} is {getattr(self, name)!r}; it must be {only!r} without images")

    def draw(self, key, rows, positions):
        """The law's times, falling within every group, the first of which is T_max."""
        t, r = super().draw(key, rows, positions)
        t = -jnp.sort(-t.reshape(-1, self.trajectory_points), axis=1)
        t = t.at[:, 0].set(self.transport.T_max).reshape(-1)
        equal, _ = self.times.assign(rows)
        return t, jnp.where(equal, t, jnp.minimum(r, t))

    def taught(self, nets, rows, t):
        transport, times = self.transport, t.reshape(-1, self.trajectory_points).T
        first = jax.tree.map(lambda x: x.reshape(-1, self.trajectory_points, *x.shape[1:])[:, 0], rows)

        def step(x, pair):
            now, then = pair
            F = self.teacher(nets, transport, x, now, first)
            return jump(transport, x, F, now, then), data_and_noise(transport, x, F, now)

        following = jnp.concatenate([times[1:], times[-1:]])
        _, found = jax.lax.scan(step, expand(transport.sigma(times[0]), first.noise) * first.noise, (times, following))
        x, noise = (state.swapaxes(0, 1).reshape(rows.x.shape) for state in found)
        return self.of_first(first, rows)._replace(x=x, noise=noise)

    def of_first(self, first: Any, rows: Any) -> Any:
        """The rows with the conditions of their group's first."""

        def spread(leaf):
            return jnp.repeat(leaf[:, None], self.trajectory_points, axis=1).reshape(-1, *leaf.shape[1:])

        names = ("condition", "null_condition", "is_null")
        return rows._replace(**{name: jax.tree.map(spread, getattr(first, name)) for name in names})
