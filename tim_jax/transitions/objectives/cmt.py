"""Mid-training by the ends of a teacher's solver trajectories (CMT, arXiv 2509.24526).

The examples of a batch form groups: the states x_i of one trajectory of the teacher from noise, at the times of a grid.
From each of them the network learns to jump to where the solver ends,

    F(x_i, t_i, T_min) = (x_end − A x_i)/B,   A, B of the jump t_i → T_min (`jump.py`),

which has no tangent and no target of the network's own: a regression, as stable as flow matching. Any objective may
start from such a run (`start.checkpoint`).

The trajectory is solved with Heun's method, two evaluations of the teacher for an example with `solver_steps` 1;
published runs have DPM-Solver++(3M), one. Data serve for shapes and conditions alone, as in `trajectory.py`. For VE and
OT-FM the published square ‖f(x_i) − x_end‖² is t_i² times that of F, which is left to `objective.weight`; the published
recipe of consistency models has LPIPS, and that of MeanFlow further jumps between two states of a trajectory. In the
published code the teacher is not told the class; here it is.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.transitions.derivative import Net
from tim_jax.transitions.groups import Split, split_examples
from tim_jax.transitions.jump import coefficient_A, coefficient_B, data_and_noise, expand
from tim_jax.transitions.objectives.trajectory import TrajectoryConsistency
from tim_jax.transitions.sampling.grids import GRIDS, make_grid
from tim_jax.transitions.tangent import UNUSED as OF_TANGENTS
from tim_jax.types import Examples

UNUSED = {
    (
        *(f"objective.{name}" for name in ("consistency", "derivative", "epsilon")),
        *(f"times.{name}" for name in ("distribution", "P_mean", "P_std", "intervals", "shift_reference")),
        *(key for keys in OF_TANGENTS for key in keys),
    ): (
        "objective.name is 'cmt', whose times are those of a grid and whose jumps end where the teacher's do",
        lambda c: c.objective.name == "cmt",
    ),
}


@dataclasses.dataclass(frozen=True)
class TrajectoryEnds(TrajectoryConsistency):
    """An Objective whose jumps from states of the teacher's trajectories end where these do."""

    grid: str = "uniform"  # of the states of a trajectory: a name in GRIDS; cmt alone has it
    solver_steps: int = 1  # of Heun's method from a state to the next; cmt alone has it

    @property
    def follows_teacher(self) -> bool:
        return True

    def check(self) -> None:
        super().check()
        if self.grid not in GRIDS:
            raise ValueError(f"objective.grid is {self.grid!r}; it must be one of {', '.join(GRIDS)}")
        if self.solver_steps < 1:
            raise ValueError(f"objective.solver_steps is {self.solver_steps}; it must be at least 1")
        for name, only in (("share_equal", 0), ("share_min", 1)):
            if getattr(self.times, name) != only:
                raise ValueError(
                    f"times.{name} is {getattr(self.times, name)}; it must be {only} where all jumps end with a "
                    "trajectory"
                )

    def draw(
        self, key: jax.Array, count: int, positions: int, batch: jax.Array | int = 0
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (t, r), each (count,): in every group the times of the grid, and T_min."""
        times = make_grid(self.grid, self.transport, self.trajectory_points)[:-1]
        t = jnp.tile(jnp.asarray(times), count // self.trajectory_points)
        return t, jnp.full_like(t, self.transport.T_min)

    def split(self, count: int) -> Split:
        """Returns one group: the target of every example is what `distilled` makes of it."""
        return split_examples(np.ones(count, bool), self.shards)

    def distilled(self, nets: Mapping[str, Net], examples: Examples, t: jax.Array) -> Examples:
        """Returns the examples with the x̂ and ε̂ whose state is x_i and whose F jumps to the trajectory's end."""
        first = self.first_of_each(examples)
        times = t.reshape(-1, self.trajectory_points).T
        start = expand(self.transport.sigma(times[0]), first.noise) * first.noise
        states, end = self.trajectory(nets, first, start, times)
        x_t, x_end = (self.in_order(x) for x in (states, jnp.broadcast_to(end, states.shape)))
        x, noise = data_and_noise(self.transport, x_t, self.to_the_end(x_t, x_end, t), t)
        return self.with_conditions(examples, first)._replace(x=x, noise=noise)

    def trajectory(
        self, nets: Mapping[str, Net], first: Examples, start: jax.Array, times: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the states (points, groups, …) of the teacher's trajectories, and their ends (groups, …) at T_min.

        Args:
            nets: The networks by name.
            first: The first example of each group.
            start: The first states (groups, …).
            times: The times (points, groups) of the states.
        """

        def step(x: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            return self.teacher.solve(nets, self.transport, x, *pair, first, self.solver_steps), x

        following = jnp.concatenate([times[1:], jnp.full_like(times[:1], self.transport.T_min)])
        end, states = jax.lax.scan(step, start, (times, following))
        return states, end

    def to_the_end(self, x_t: jax.Array, x_end: jax.Array, t: jax.Array) -> jax.Array:
        """Returns F* (B, …), with which the jump from x_t (B, …) at t (B,) ends in x_end (B, …) at T_min."""
        t = expand(t, x_t)
        end = jnp.full_like(t, self.transport.T_min)
        F_star = (x_end - coefficient_A(self.transport, t, end) * x_t) / coefficient_B(self.transport, t, end)
        return jax.lax.stop_gradient(F_star)
