"""What makes jumps consistent with one another, and so gives the rows with r ≠ t their targets.

    eulerian    the end of a jump does not change when its start moves along the path: target.py  (TiM, MeanFlow, sCM)
    lagrangian  the end of a jump moves with the teacher's velocity when r does: target.py  (Align Your Flow)
    semigroup   two jumps t → s → r are one jump t → r:
                F* = (f_{s→r}(f_{t→s}(x_t)) − A_{t,r} x_t) / B_{t,r}                    (Shortcut, SplitMeanFlow)
                f_{t→s} may be a teacher's ODE, solved                                  (CTM)

Each calls the network once for all training rows, plain ones too, so that its parameters are read once.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tim_jax.transitions.derivative import jvp_in_r, query
from tim_jax.transitions.jump import coefficient_A, coefficient_B, data_and_noise, expand, interpolate, jump
from tim_jax.transitions.target import end_target, transition_change
from tim_jax.transitions.transports import Transport
from tim_jax.types import Output

SPLITS = ("half", "uniform")


class Prediction(NamedTuple):
    """Rows with r ≠ t after the network: its output, their target, the root mean square of the derivative (0: none)."""

    output: Output
    target: jax.Array
    tangent: jax.Array


UNUSED = {
    tuple(f"objective.bootstrap.{name}" for name in ("ema", "split", "min_interval", "solver_steps")): (
        "objective.consistency is not 'semigroup'",
        lambda c: c.objective.consistency != "semigroup",
    ),
}


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """Where the semigroup's two jumps come from, without gradient.

    The first ends at s, in the middle ("half", Shortcut, arXiv 2410.12557) or uniform in (r, t) ("uniform",
    SplitMeanFlow, arXiv 2507.16884); with solver steps it follows the teacher's velocity (CTM, arXiv 2310.02279).
    """

    ema: str = "online"  # whose two jumps are the target: "online" or the name of an EMA
    split: str = "half"  # where the first ends: half, uniform
    min_interval: float = 0.0  # jumps up to this share of the time domain are evaluated at r = t
    solver_steps: int = 0  # of Heun's method along the teacher that make the first jump; 0: none

    def check(self) -> None:
        """Raises ValueError for what cannot be."""
        if self.split not in SPLITS:
            raise ValueError(f"objective.bootstrap.split is {self.split!r}; it must be one of {', '.join(SPLITS)}")
        if not 0 <= self.min_interval < 1:
            raise ValueError(f"objective.bootstrap.min_interval is {self.min_interval}; it must lie in [0, 1)")
        if self.solver_steps < 0:
            raise ValueError(f"objective.bootstrap.solver_steps is {self.solver_steps}; it must be at least 0")

    def between(self, t: jax.Array, r: jax.Array, key: jax.Array | None) -> jax.Array:
        """s (B,), r ≤ s ≤ t."""
        share = 0.5 if self.split == "half" else jax.random.uniform(key, t.shape, t.dtype)
        return t + share * (r - t)


def eulerian(
    objective: Any, nets: Any, plain: tuple, group: tuple, step: jax.Array, key: Any
) -> tuple[tuple, Prediction]:
    """Outputs of the plain queries, and the moving rows `group` = (rows, t, r, base) with the transition target."""
    rows, t, r, base = group
    transport, x, noise = objective.transport, rows.x, rows.noise
    if objective.velocity != "data":  # base' and dF/dt go along the same path
        x_t = interpolate(transport, x, noise, t)
        x, noise = data_and_noise(transport, x_t, direction(objective, nets, rows, x_t, t, base), t)
    outputs, output, dF_dt = objective.differentiate(
        nets, plain, (transport, x, noise, t, r, rows.condition, rows.keys)
    )
    held = objective.tangent.held(dF_dt, step)
    change, q = transition_change(transport, x, noise, t, r, held)
    target = objective.tangent.target(base, change, q, output.F, step, r != t)
    return outputs, Prediction(output, target, jnp.sqrt(jax.lax.stop_gradient(row_mean(dF_dt**2))))


def direction(objective: Any, nets: Any, rows: Any, x_t: jax.Array, t: jax.Array, base: jax.Array) -> jax.Array:
    """The prediction at r = t along whose velocity dF/dt is taken, by `objective.velocity`; without gradient."""
    if objective.velocity in ("target", "teacher"):  # the rows are the teacher's by now, and the base may be guided
        return jax.lax.stop_gradient(base)
    head = objective.velocity == "head"
    here = query(objective.transport, x_t, t, t, rows.condition, rows.keys)
    (output,) = nets["online" if head else objective.velocity]((here,))
    return jax.lax.stop_gradient(output.heads["velocity"] if head else output.F)


def lagrangian(
    objective: Any, nets: Any, plain: tuple, group: tuple, step: jax.Array, key: Any
) -> tuple[tuple, Prediction]:
    """As `eulerian`, with the target of `target.end_target`."""
    rows, t, r, base = group
    transport, x_t = objective.transport, interpolate(objective.transport, rows.x, rows.noise, t)
    outputs, output, dF_dr = jvp_in_r(nets["online"], transport, x_t, t, r, rows.condition, rows.keys, plain=plain)
    F = jax.lax.stop_gradient(output.F)
    x_r = jump(transport, x_t, F, t, r)
    F_r = objective.teacher(nets, transport, x_r, r, rows)
    end, q = end_target(transport, x_t, x_r, F_r, t, r)
    change = -q * objective.tangent.held(dF_dr, step)
    target = objective.tangent.target(end, change, q, F, step, r != t)
    # Where r = t so are x_r and x_t, and the teacher has been asked there.
    target = jnp.where(expand(r != t, target), target, F_r if objective.velocity == "teacher" else base)
    return outputs, Prediction(output, target, jnp.sqrt(jax.lax.stop_gradient(row_mean(dF_dr**2))))


def semigroup(
    objective: Any, nets: Any, plain: tuple, group: tuple, step: jax.Array, key: Any
) -> tuple[tuple, Prediction]:
    """As `eulerian`, with the target of two jumps by `objective.bootstrap`."""
    rows, t, r, base = group
    transport, x_t = objective.transport, interpolate(objective.transport, rows.x, rows.noise, t)
    *outputs, output = nets["online"]((*plain, query(transport, x_t, t, r, rows.condition, rows.keys)))
    s = objective.bootstrap.between(t, r, key)
    net = nets[objective.bootstrap.ema]
    short = objective.bootstrap.min_interval * (transport.T_max - transport.T_min) * (1 + 1e-3)

    def F(x, t, r):
        asked = jnp.where(t - r <= short, t, r)
        return net((query(transport, x, t, asked, rows.condition, rows.keys),))[0].F

    solver, x_s = objective.bootstrap.solver_steps, None
    if solver:
        x_s = objective.teacher.solve(nets, transport, x_t, t, s, rows, solver)
    target = semigroup_target(transport, x_t, t, s, r, F, base, x_s)
    return tuple(outputs), Prediction(output, target, jnp.zeros_like(t))


def semigroup_target(
    transport: Transport,
    x_t: jax.Array,
    t: jax.Array,
    s: jax.Array,
    r: jax.Array,
    F: Any,
    base: jax.Array,
    x_s: jax.Array | None = None,
) -> jax.Array:
    """F* above, without gradient, from F: (x, t, r) → prediction; base where r = t, whose quotient is 0/0.

    x_s: the end of the first jump, where F does not make it.
    """
    first = None if x_s is not None else F(x_t, t, s)
    second = F(jump(transport, x_t, first, t, s) if x_s is None else x_s, s, r)
    same = r == t
    # Another r keeps the quotient finite before it is discarded.
    other = jnp.where(same, jnp.where(t > transport.T_min, transport.T_min, transport.T_max), r)
    t, s, r = (expand(time, x_t) for time in (t, s, other))
    A_ts, A_sr, A_tr = (coefficient_A(transport, *pair) for pair in ((t, s), (s, r), (t, r)))
    B_ts, B_sr, B_tr = (coefficient_B(transport, *pair) for pair in ((t, s), (s, r), (t, r)))
    # Without x_s, which for short jumps is nearly x_t, no digits cancel.
    way = A_sr * B_ts * first + (A_sr * A_ts - A_tr) * x_t if x_s is None else A_sr * x_s - A_tr * x_t
    F_star = (way + B_sr * second) / B_tr
    return jax.lax.stop_gradient(jnp.where(expand(same, x_t), base, F_star))


CONSISTENCIES = {"eulerian": eulerian, "lagrangian": lagrangian, "semigroup": semigroup}


def row_mean(x: jax.Array) -> jax.Array:
    """(B,) means over all but the first axis."""
    return x.reshape(len(x), -1).mean(axis=1)
