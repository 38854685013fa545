"""Plans whose times and weights are free: bespoke non-stationary solvers (arXiv 2403.01329), begun from any sampler's.

All changes are relative to the plan that they begin from, which is the one of changes 0, to the last bit. Times stay in
their order and between the same ends, and what was one time stays one; a weight that the sampler never has stays 0, so
that a plan keeps its structure: an evaluation that needed no other one's result still needs none.
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.transitions.derivative import Net
from tim_jax.transitions.sampling.plans import SamplingPlan
from tim_jax.transitions.sampling.sampler import sample
from tim_jax.transitions.transports import Transport
from tim_jax.types import PyTree


class Changes(NamedTuple):
    """The free numbers of a plan of n evaluations that remembers K of them.

    Attributes:
        gaps: (m,), by whose exponentials the m gaps between neighbouring times are longer, before all are rescaled.
        a, b: (n, K), what is added to the weights, in units of the largest one of each evaluation.
    """

    gaps: jax.Array | np.ndarray
    a: jax.Array | np.ndarray
    b: jax.Array | np.ndarray


class Family(NamedTuple):
    """All plans of one structure.

    Attributes:
        start: The plan of changes 0, in times of the transport.
        times: (m + 1,) all times of the plan and the last one of its steps, each once, falling.
        t, s: (n,) which of them are the two of each evaluation.
        a, b: (n, K) the units of changes, 0 where a weight is fixed at 0.
    """

    start: SamplingPlan
    times: np.ndarray
    t: np.ndarray
    s: np.ndarray
    a: np.ndarray
    b: np.ndarray


def family(start: SamplingPlan, last: float, evaluations: int) -> Family:
    """Returns the plans that have the structure of one.

    Args:
        start: The plan, in times of the transport; without fresh noise.
        last: The time at which its last step ends.
        evaluations: The number of evaluations in a step.

    Raises:
        ValueError: The plan has fresh noise, or depends on the image.
    """
    if start.rule is not None:
        raise ValueError("start.rule is given; it must be None, as a plan is learned for all images alike")
    if start.c.any():
        raise ValueError(f"start.c is up to {start.c.max():g}; it must be 0, as a plan is learned without fresh noise")
    times, index = np.unique(np.concatenate([start.t, start.s, [last]]), return_inverse=True)
    count = len(start.t)
    t, s, _ = np.split(len(times) - 1 - index.ravel(), [count, 2 * count])
    units = [_units(weights, evaluations) for weights in (start.a, start.b)]
    return Family(start, times[::-1], t, s, *units)


def _units(weights: np.ndarray, evaluations: int) -> np.ndarray:
    """Returns the largest weight of each evaluation, where the same evaluation of any step has a weight; else 0."""
    count, memory = weights.shape
    stage = np.arange(count) % evaluations
    used = np.stack([(weights[stage == e] != 0).any(0) for e in range(min(evaluations, count))])[stage]
    used &= np.arange(count)[:, None] >= np.arange(memory)  # there is nothing before the first evaluation
    return np.where(used, np.abs(weights).max(1, keepdims=True), 0.0)


def unchanged(of: Family) -> Changes:
    """Returns the changes 0, in float64."""
    return Changes(np.zeros(len(of.times) - 1), np.zeros(of.a.shape), np.zeros(of.b.shape))


def changed(of: Family, changes: Changes, xp: Any = np) -> SamplingPlan:
    """Returns the plan of some changes.

    Args:
        of: The plans among which it is.
        changes: The changes.
        xp: numpy, for float64; or jax.numpy, to differentiate.
    """
    gaps = -np.diff(of.times)
    weights = gaps * xp.exp(changes.gaps)
    longer = weights * (gaps.sum() / weights.sum()) - gaps  # 0 for changes 0: the quotient is 1
    ends = np.zeros(1)
    times = of.times - xp.concatenate([ends, xp.cumsum(longer[:-1]), ends])
    a, b = (old + unit * new for old, unit, new in zip(of.start[2:4], (of.a, of.b), changes[1:], strict=True))
    plan: SamplingPlan = of.start._replace(t=times[of.t], s=times[of.s], a=xp.asarray(a), b=xp.asarray(b))
    return plan


def end_states(
    net: Net,
    transport: Transport,
    plan: SamplingPlan,
    x: jax.Array,
    condition: PyTree,
    null_condition: PyTree,
    guidance: float | jax.Array = 1.0,
) -> jax.Array:
    """Returns the states (B, …) after the last evaluation of a plan in times of the transport, to differentiate.

    The activations of the network are computed anew for every evaluation, so that memory is needed for one alone.

    Args:
        net, x, condition, null_condition, guidance: Those of `sampler.sample`.
        transport: The transport.
        plan: The plan, without fresh noise.
    """
    t, s = (cast(Any, transport.c_noise(jnp.asarray(time))) for time in (plan.t, plan.s))  # traced
    seen = plan._replace(t=t, s=s)
    keys = jax.random.split(jax.random.key(0), len(x))  # of no noise
    return sample(jax.checkpoint(net), seen, x, condition, null_condition, keys, guidance)
