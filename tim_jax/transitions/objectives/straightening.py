"""Segmented straightening: a flow that is straight between a teacher's states at the ends of segments of time.

Of a segment t_a > t_b, x_a = α_a x + σ_a ε is a state of the data's own path, and x_b = Φ_{a→b}(x_a) where the
teacher's ODE takes it. The virtual data and noise (x̃, ε̃) of

    α_a x̃ + σ_a ε̃ = x_a,   α_b x̃ + σ_b ε̃ = x_b

are what one jump by the velocity from x_a to x_b stands for, whatever the transport; for OT-FM their path is the
straight line with v = (x_a − x_b)/(t_a − t_b). Flow matching on it,

    L = E ‖F(x̃_t, t, t) − (α̂_t x̃ + σ̂_t ε̃)‖²,   x̃_t = α_t x̃ + σ_t ε̃,   t in (t_b, t_a],

learns a flow with the teacher's states at the ends of segments, that Euler's method follows in one step for each.

Sequential reflow (SeqRF, arXiv 2402.06461) and piecewise rectified flow (PeRFlow, arXiv 2405.07510) have equal
segments of time. Bellman optimal step sizes (BOSS, arXiv 2312.16414) retrains on those that its dynamic programme
finds, `edges`, from states of the teacher's own trajectories, where they are those of the data's paths here.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.transitions.derivative import Net
from tim_jax.transitions.jump import expand, interpolate
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.sampling.grids import GRIDS, make_grid
from tim_jax.transitions.transports import Transport
from tim_jax.types import Examples

UNUSED = {
    ("objective.segments.count", "objective.segments.grid"): (
        "objective.segments.edges are given",
        lambda c: bool(c.objective.segments.edges),
    ),
}
PLAIN = tuple(name for name in GRIDS if name != "shifted")  # the grids without a further setting


@dataclasses.dataclass(frozen=True)
class Segments:
    """Where segments lie, and how the teacher's ODE is solved over one."""

    count: int = 4
    grid: str = "uniform"  # a name in tim_jax.transitions.GRIDS but shifted, with so many steps
    edges: tuple[float, ...] = ()  # times from T_max down to T_min, such as those of grid.json, in place of these
    solver_steps: int = 4  # of Heun's method along the teacher

    def check(self, transport: Transport) -> None:
        """Raises ValueError, naming key and value, for settings that are invalid or do not fit the transport."""
        for name in ("count", "solver_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"objective.segments.{name} is {getattr(self, name)}; it must be at least 1")
        if self.grid not in PLAIN:
            raise ValueError(f"objective.segments.grid is {self.grid!r}; it must be one of {', '.join(PLAIN)}")
        ends = transport.T_max, transport.T_min
        if self.edges and not (np.allclose((self.edges[0], self.edges[-1]), ends) and (np.diff(self.edges) < 0).all()):
            raise ValueError(
                f"objective.segments.edges is {self.edges}; it must fall from {ends[0]:g} to {ends[1]:g}, as times of "
                f"{transport.name} do"
            )

    def times(self, transport: Transport) -> np.ndarray:
        """Returns the ends of all segments, (n + 1,) times that grow from T_min to T_max."""
        if not self.edges:
            return make_grid(self.grid, transport, self.count)[::-1]
        inside = sorted(self.edges)[1:-1]
        return np.array([transport.T_min, *inside, transport.T_max], np.float64)


@dataclasses.dataclass(frozen=True)
class Straightening(Objective):
    """Flow matching on (x̃, ε̃) of the segment that each example's time lies in."""

    segments: Segments = Segments()  # straightening alone has them

    def check(self) -> None:
        super().check()
        self.segments.check(self.transport)
        for name, only in (("velocity", "teacher"), ("head_weight", 0.0)):
            if getattr(self, name) != only:
                raise ValueError(f"objective.{name} is {getattr(self, name)!r}; it must be {only!r} for straightening")
        if self.times.share_equal != 1:
            raise ValueError(
                f"times.share_equal is {self.times.share_equal}; it must be 1, as jumps beyond a segment are not "
                "straight"
            )
        if self.guidance.active or self.input_guidance.active:
            given = f"objective.input_guidance.max_scale is {self.input_guidance.max_scale}; it must be 1"
            if self.guidance.active:
                given = f"objective.guidance.w_gt is {self.guidance.w_gt}; it must be 1, with w_cond 0,"
            raise ValueError(f"{given} for straightening, whose guidance is teacher.guidance")

    def segment(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (t_a, t_b), each (B,), the ends of the segments t_b < t ≤ t_a of times t (B,)."""
        ends = jnp.asarray(self.segments.times(self.transport), t.dtype)
        upper = jnp.clip(jnp.searchsorted(ends, t, side="left"), 1, len(ends) - 1)
        return ends[upper], ends[upper - 1]

    def distilled(self, nets: Mapping[str, Net], examples: Examples, t: jax.Array) -> Examples:
        """Returns the examples with x̃ and ε̃ for data and noise."""
        transport, (t_a, t_b) = self.transport, self.segment(t)
        x_a = interpolate(transport, examples.x, examples.noise, t_a)
        x_b = self.teacher.solve(nets, transport, x_a, t_a, t_b, examples, self.segments.solver_steps)
        x, noise = joined(transport, x_a, x_b, t_a, t_b)
        return examples._replace(x=x, noise=noise)


def joined(
    transport: Transport, x_a: jax.Array, x_b: jax.Array, t_a: jax.Array, t_b: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns data and noise, each (B, …), whose path goes through the states x_a and x_b at the times t_a and t_b."""
    t_a, t_b = expand(t_a, x_a), expand(t_b, x_b)
    alpha_a, alpha_b = transport.alpha(t_a), transport.alpha(t_b)
    sigma_a, sigma_b = transport.sigma(t_a), transport.sigma(t_b)
    determinant = alpha_a * sigma_b - alpha_b * sigma_a
    return (sigma_b * x_a - sigma_a * x_b) / determinant, (alpha_a * x_b - alpha_b * x_a) / determinant
