"""Consistencies: what makes jumps agree with one another, and so gives examples with r ≠ t their targets.

    eulerian    The end of a jump does not change when its start moves along the path: see `target.py`.
                (TiM, MeanFlow, sCM)
    lagrangian  The end of a jump moves with the velocity of a teacher, or of the network's own EMA, when r does: see
                `target.end_target`.                                                    (Align Your Flow, TVM)
    semigroup   Two jumps t → s → r are one jump t → r:
                F* = (f_{s→r}(f_{t→s}(x_t)) − A_{t,r} x_t) / B_{t,r}                    (Shortcut, SplitMeanFlow)
                where f_{t→s} may be the solution of a teacher's ODE.                   (CTM)
    annealed    The semigroup with a first jump along the velocity, over a share α of the interval that falls to 0. Then
                it is the eulerian consistency, to which it tends.                 (α-Flow)

Each calls the online network once for all examples, those with r = t included, so that its parameters are read once.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp

from tim_jax.transitions.bootstrap import Bootstrap
from tim_jax.transitions.derivative import Net, Path, jvp_in_r, query
from tim_jax.transitions.guidance import InputGuidance
from tim_jax.transitions.jump import coefficient_A, coefficient_B, data_and_noise, expand, interpolate, jump
from tim_jax.transitions.tangent import Tangent
from tim_jax.transitions.target import end_target, transition_change
from tim_jax.transitions.teacher import Teacher
from tim_jax.transitions.transports import Transport
from tim_jax.types import Examples, Output, Query


class Group(NamedTuple):
    """A group of examples with their times.

    Attributes:
        examples: The examples.
        t, r: The times (B,) where their jumps start and end.
        base: Their target (B, …) at r = t, perhaps guided.
    """

    examples: Examples
    t: jax.Array
    r: jax.Array
    base: jax.Array


class Prediction(NamedTuple):
    """What the network predicted for a group of examples, and what it should have predicted.

    Attributes:
        output: The network's output.
        target: The target (B, …) of its F.
        tangent: (B,) the root mean square of the derivative; 0 where there is none.
    """

    output: Output
    target: jax.Array
    tangent: jax.Array


class ConsistentObjective(Protocol):
    """What a consistency needs of an objective; the attributes are those of `objective.Objective`."""

    @property
    def transport(self) -> Transport: ...

    @property
    def velocity(self) -> str: ...

    @property
    def tangent(self) -> Tangent: ...

    @property
    def bootstrap(self) -> Bootstrap: ...

    @property
    def teacher(self) -> Teacher: ...

    @property
    def input_guidance(self) -> InputGuidance: ...

    def differentiate(
        self, nets: Mapping[str, Net], diagonal: tuple[Query, ...], path: Path
    ) -> tuple[tuple[Output, ...], Output, jax.Array]:
        """Returns the outputs of the `diagonal` queries, the output on the path, and dF/dt (B, …) there."""
        ...


class Consistency(Protocol):
    """A function that predicts a group of examples with r ≠ t and gives them their targets."""

    def __call__(
        self,
        objective: ConsistentObjective,
        nets: Mapping[str, Net],
        diagonal: tuple[Query, ...],
        group: Group,
        step: jax.Array,
        key: jax.Array | None,
    ) -> tuple[tuple[Output, ...], Prediction]:
        """Calls the online network on the `diagonal` queries and on the group.

        Args:
            objective: The settings.
            nets: The networks by name.
            diagonal: Queries at r = t, which get no tangent.
            group: The examples with r ≠ t.
            step: The training step, a scalar.
            key: A random key for split points, where the settings need one.

        Returns:
            The outputs of the `diagonal` queries, and the prediction for the group.
        """
        ...


def eulerian(
    objective: ConsistentObjective,
    nets: Mapping[str, Net],
    diagonal: tuple[Query, ...],
    group: Group,
    step: jax.Array,
    key: jax.Array | None,
) -> tuple[tuple[Output, ...], Prediction]:
    """A Consistency with the transition target."""
    examples, t, r, base = group
    transport, x, noise = objective.transport, examples.x, examples.noise
    if objective.velocity != "data":  # base' and dF/dt go along the same path
        x_t = interpolate(transport, x, noise, t)
        x, noise = data_and_noise(transport, x_t, direction(objective, nets, examples, x_t, t, base), t)
    path = Path(transport, x, noise, t, r, examples.condition, examples.keys)
    outputs, output, dF_dt = objective.differentiate(nets, diagonal, path)
    change, q = transition_change(transport, x, noise, t, r, objective.tangent.mix_stop_gradient(dF_dt, step))
    target = objective.tangent.target(base, change, q, output.F, step, r != t, transport.share(t))
    return outputs, Prediction(output, target, jnp.sqrt(jax.lax.stop_gradient(example_mean(dF_dt**2))))


def direction(
    objective: ConsistentObjective,
    nets: Mapping[str, Net],
    examples: Examples,
    x_t: jax.Array,
    t: jax.Array,
    base: jax.Array,
) -> jax.Array:
    """Returns the prediction (B, …) at r = t along whose velocity dF/dt is taken, without gradient.

    Args:
        objective: Its `velocity` says which prediction.
        nets: The networks by name.
        examples: The examples; distilled already where `velocity` is 'teacher'.
        x_t: Their states (B, …).
        t: The times (B,) of the states.
        base: Their target (B, …) at r = t, perhaps guided.
    """
    if objective.velocity in ("target", "teacher"):  # the examples are the teacher's by now, and may be guided
        return jax.lax.stop_gradient(base)
    if examples.known is not None and objective.velocity in ("head", "online"):
        return examples.known
    head = objective.velocity == "head"
    condition = objective.input_guidance.at(objective.transport, examples.condition, t)
    here = query(objective.transport, x_t, t, t, condition, examples.keys)
    (output,) = nets["online" if head else objective.velocity]((here,))
    return jax.lax.stop_gradient(output.heads["velocity"] if head else output.F)


def lagrangian(
    objective: ConsistentObjective,
    nets: Mapping[str, Net],
    diagonal: tuple[Query, ...],
    group: Group,
    step: jax.Array,
    key: jax.Array | None,
) -> tuple[tuple[Output, ...], Prediction]:
    """A Consistency with the target of `target.end_target`."""
    examples, t, r, base = group
    transport, x_t = objective.transport, interpolate(objective.transport, examples.x, examples.noise, t)
    outputs, output, dF_dr = jvp_in_r(
        nets["online"], transport, x_t, t, r, examples.condition, examples.keys, diagonal=diagonal
    )
    F = jax.lax.stop_gradient(output.F)
    x_r = jump(transport, x_t, F, t, r)
    F_r = end_prediction(objective, nets, examples, x_r, r)
    end, q = end_target(transport, x_t, x_r, F_r, t, r)
    change = -q * objective.tangent.mix_stop_gradient(dF_dr, step)
    target = objective.tangent.target(end, change, q, F, step, r != t, transport.share(t))
    # Where r = t, x_r is x_t, and F_r is the teacher's prediction there.
    target = jnp.where(expand(r != t, target), target, F_r if objective.velocity == "teacher" else base)
    return outputs, Prediction(output, target, jnp.sqrt(jax.lax.stop_gradient(example_mean(dF_dr**2))))


def end_prediction(
    objective: ConsistentObjective, nets: Mapping[str, Net], examples: Examples, x_r: jax.Array, r: jax.Array
) -> jax.Array:
    """Returns the prediction (B, …) at (x_r, r, r) with whose velocity jumps shall end, without gradient.

    Args:
        objective: Its `velocity` says whose prediction: that of a network by its name, else the teacher's.
        nets: The networks by name.
        examples: The examples.
        x_r: Their states (B, …) where jumps end.
        r: The times (B,) of the states.
    """
    if objective.velocity in ("data", "teacher"):
        return objective.teacher(nets, objective.transport, x_r, r, examples)
    here = query(objective.transport, x_r, r, r, examples.condition, examples.keys)
    (output,) = nets[objective.velocity]((here,))
    return jax.lax.stop_gradient(output.F)


def semigroup(
    objective: ConsistentObjective,
    nets: Mapping[str, Net],
    diagonal: tuple[Query, ...],
    group: Group,
    step: jax.Array,
    key: jax.Array | None,
) -> tuple[tuple[Output, ...], Prediction]:
    """A Consistency with the target of two jumps, which come from `objective.bootstrap`."""
    examples, t, r, base = group
    transport, x_t = objective.transport, interpolate(objective.transport, examples.x, examples.noise, t)
    here = query(transport, x_t, t, r, examples.condition, examples.keys)
    *outputs, output = nets["online"]((*diagonal, here))
    bootstrap = objective.bootstrap
    s = bootstrap.split_point(t, r, step, key)
    net = nets[bootstrap.ema]
    short = bootstrap.min_interval * (transport.T_max - transport.T_min) * (1 + 1e-3)

    def F(x: jax.Array, t: jax.Array, r: jax.Array) -> jax.Array:
        end = jnp.where(t - r <= short, t, r)
        return net((query(transport, x, t, end, examples.condition, examples.keys),))[0].F

    steps, x_s = bootstrap.solver_steps, None
    if steps:
        x_s = objective.teacher.solve(nets, transport, x_t, t, s, examples, steps)
    first = base if bootstrap.first == "velocity" else None
    target = semigroup_target(transport, x_t, t, s, r, F, base, x_s, first)
    if bootstrap.clip:
        target = jnp.where(expand(r != t, target), jnp.clip(target, -bootstrap.clip, bootstrap.clip), target)
    return tuple(outputs), Prediction(output, target, jnp.zeros_like(t))


def annealed(
    objective: ConsistentObjective,
    nets: Mapping[str, Net],
    diagonal: tuple[Query, ...],
    group: Group,
    step: jax.Array,
    key: jax.Array | None,
) -> tuple[tuple[Output, ...], Prediction]:
    """A Consistency that is `semigroup` as long as α of `objective.bootstrap` is above 0, and `eulerian` afterwards."""
    alpha, arguments = objective.bootstrap.alpha, (objective, nets, diagonal, group, step, key)
    if not alpha.vanishes:
        return semigroup(*arguments)
    # A condition on the step, not a new program: nothing compiles when the first jump has no length any more.
    chosen: tuple[tuple[Output, ...], Prediction] = jax.lax.cond(
        alpha(step) > 0, lambda: semigroup(*arguments), lambda: eulerian(*arguments)
    )
    return chosen


PredictionFunction: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (x, t, r) → F


def semigroup_target(
    transport: Transport,
    x_t: jax.Array,
    t: jax.Array,
    s: jax.Array,
    r: jax.Array,
    F: PredictionFunction,
    base: jax.Array,
    x_s: jax.Array | None = None,
    first: jax.Array | None = None,
) -> jax.Array:
    """Returns the target F* (B, …) of two jumps t → s → r, without gradient.

    Args:
        transport: The transport.
        x_t: States (B, …).
        t, s, r: The times (B,), r ≤ s ≤ t.
        F: Predicts the jumps.
        base: The target (B, …) at r = t, where the quotient is 0/0.
        x_s: The end (B, …) of the first jump, where no prediction makes it.
        first: The prediction (B, …) that makes the first jump, in place of F's.
    """
    if x_s is None and first is None:
        first = F(x_t, t, s)
    middle = x_s if first is None else jump(transport, x_t, first, t, s)
    assert middle is not None
    second = F(middle, s, r)
    same = r == t
    # Another r keeps the quotient finite before it is discarded.
    other = jnp.where(same, jnp.where(t > transport.T_min, transport.T_min, transport.T_max), r)
    t, s, r = (expand(time, x_t) for time in (t, s, other))
    A_ts, A_sr, A_tr = (coefficient_A(transport, *pair) for pair in ((t, s), (s, r), (t, r)))
    B_ts, B_sr, B_tr = (coefficient_B(transport, *pair) for pair in ((t, s), (s, r), (t, r)))
    # Written without x_s, which for short jumps is nearly x_t, no digits cancel.
    way = A_sr * middle - A_tr * x_t if first is None else A_sr * B_ts * first + (A_sr * A_ts - A_tr) * x_t
    F_star = (way + B_sr * second) / B_tr
    return jax.lax.stop_gradient(jnp.where(expand(same, x_t), base, F_star))


CONSISTENCIES: dict[str, Consistency] = {
    "eulerian": eulerian,
    "lagrangian": lagrangian,
    "semigroup": semigroup,
    "annealed": annealed,
}


def example_mean(x: jax.Array) -> jax.Array:
    """Returns the means (B,) over all axes but the first."""
    return x.reshape(len(x), -1).mean(axis=1)
