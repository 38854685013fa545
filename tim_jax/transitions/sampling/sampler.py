"""Sampling: from noise at T_max to data at T_min by a plan of network evaluations (see `plans.py`), as one loop.

Noise is keyed by (seed, image index): an image does not depend on its batch.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.transitions.derivative import Net
from tim_jax.transitions.sampling.grids import GRIDS, make_grid
from tim_jax.transitions.sampling.plans import SAMPLERS, STOCHASTIC, SamplingPlan, host_transport
from tim_jax.transitions.transports import Transport
from tim_jax.types import Query

UNUSED = {
    ("sampling.guidance_low", "sampling.guidance_high", "sampling.exclusive_ends"): (
        "sampling.guidance is 1",
        lambda c: c.sampling.guidance == 1,
    ),
    ("sampling.shift",): ("sampling.grid is not 'shifted'", lambda c: c.sampling.grid != "shifted"),
    ("sampling.stochastic",): ("sampling.stochasticity is 0", lambda c: c.sampling.stochasticity == 0),
}
PADDED = 128  # evaluations that a padded plan has room for


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to sample.

    Guidance is F_∅ + s (F_c − F_∅) with the scale s, in an interval of times. `stochastic` tells how the flow map takes
    fresh noise after each jump but the first and last: 'renoise' jumps further down and returns by the forward process,
    which keeps the marginals exactly for an exact flow map; 'euler' is the published first-order form. Not keys of a
    configuration: found, the times of the grid 'optimal' by number of steps, and guidance_input, whether the network
    itself takes scale and interval, so that no second evaluation is needed.
    """

    ema: str = "slow"  # the weights: the name of an EMA, or "online" for the raw ones
    sampler: str = "flow_map"  # "default": the objective's, or a name in tim_jax.transitions.SAMPLERS
    grid: str = "uniform"  # a name in tim_jax.transitions.GRIDS, or "optimal" (python -m tim_jax.grid)
    shift: float = 3.0  # of the grid "shifted"; above 1: more steps near noise
    batch_size: int = 64  # images at once, at most
    guidance: float = 1.0  # scale; 1: none
    guidance_low: float = 0.0  # interval of guidance, as fractions of T_max
    guidance_high: float = 1.0
    exclusive_ends: bool = False  # the published code leaves the interval's ends out
    stochasticity: float = 0.0  # of the flow map; 0: none
    stochastic: str = "renoise"  # renoise, euler
    found: Mapping[int, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    guidance_input: bool = False

    def check(self) -> None:
        """Raises ValueError, naming key and value, for settings that cannot be."""
        names = {"sampler": SAMPLERS, "grid": [*GRIDS, "optimal"], "stochastic": STOCHASTIC}
        for key, table in names.items():
            if getattr(self, key) not in table:
                raise ValueError(f"sampling.{key} is {getattr(self, key)!r}; it must be one of {', '.join(table)}")
        if self.batch_size < 1:
            raise ValueError(f"sampling.batch_size is {self.batch_size}; it must be at least 1")
        if self.shift <= 0:
            raise ValueError(f"sampling.shift is {self.shift}; it must be above 0")
        if self.stochasticity < 0:
            raise ValueError(f"sampling.stochasticity is {self.stochasticity}; it must be at least 0")
        if self.stochasticity and self.sampler != "flow_map":
            raise ValueError(
                f"sampling.stochasticity is {self.stochasticity}; with sampling.sampler {self.sampler!r} it must be 0"
            )
        if not 0 <= self.guidance_low <= self.guidance_high <= 1:
            raise ValueError(
                f"sampling.guidance_low, sampling.guidance_high are {self.guidance_low}, {self.guidance_high}; "
                "they must be ordered and lie in [0, 1]"
            )
        if self.guidance < 0:
            raise ValueError(f"sampling.guidance is {self.guidance}; it must be at least 0")


def time_grid(
    transport: Transport, steps: int, sampling: Sampling | None = None, start: float | None = None
) -> np.ndarray:
    """(steps + 1,) float64 times from start (T_max by default) down to T_min, uniform unless `sampling` says otherwise.

    Raises ValueError for less than one step, a start outside the transport's times, and an optimal grid that has not
    been found for so many steps or that start.
    """
    sampling = sampling or Sampling()
    if sampling.grid != "optimal":
        return make_grid(sampling.grid, transport, steps, start, sampling.shift)
    if steps not in sampling.found:
        known = ", ".join(map(str, sorted(sampling.found))) or "no number of"
        raise ValueError(
            f"sampling.grid is 'optimal', which has been found for {known} steps, not for {steps}: "
            f"python -m tim_jax.grid --workdir=… --steps={steps} finds it"
        )
    if start not in (None, transport.T_max):
        raise ValueError(f"sampling.grid is 'optimal', which starts from noise; a start at {start} needs another grid")
    return np.array(sampling.found[steps], np.float64)


def guided_times(transport: Transport, times: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Boolean (n,): whether guidance acts on an evaluation at each time."""
    if sampling.guidance == 1.0 or sampling.guidance_input:
        return np.zeros(len(times), bool)
    low, high = sampling.guidance_low * transport.T_max, sampling.guidance_high * transport.T_max
    # Grid times carry rounding errors: an end of the interval is met within a hair.
    hair = 1e-9 * transport.T_max * (-1 if sampling.exclusive_ends else 1)
    return (times >= low - hair) & (times <= high + hair)


def make_plan(transport: Transport, times: np.ndarray, sampling: Sampling) -> SamplingPlan:
    """The plan that goes along times (steps + 1,), down, or up from data to noise.

    Raises ValueError for times that neither fall nor grow, and upwards for samplers that only go down.
    """
    times = np.asarray(times, np.float64)
    falls, grows = (np.diff(times) < 0).all(), (np.diff(times) > 0).all()
    if len(times) < 2 or not (falls or grows):
        raise ValueError(f"times {times}: expected two or more that fall, or that grow")
    sampler = SAMPLERS[sampling.sampler]
    if grows and (sampling.stochasticity or not sampler.upwards):
        able = ", ".join(name for name, sampler in SAMPLERS.items() if sampler.upwards)
        raise ValueError(
            f"sampling.sampler is {sampling.sampler!r} with stochasticity {sampling.stochasticity}; from data to noise "
            f"it must be one of {able}, without stochasticity"
        )
    if sampling.stochasticity:
        plan = STOCHASTIC[sampling.stochastic](transport, times, sampling.stochasticity)
    else:
        plan = sampler.plan(transport, times)
    c_noise = host_transport(transport).c_noise
    return plan._replace(t=c_noise(plan.t), s=c_noise(plan.s), guided=guided_times(transport, plan.t, sampling))


def evaluations(transport: Transport, steps: int, sampling: Sampling) -> int:
    """Network evaluations per image; those with guidance count twice."""
    plan = make_plan(transport, time_grid(transport, steps, sampling), sampling)
    return len(plan.t) + int(plan.guided.sum())


def steps_for(transport: Transport, most: int, sampling: Sampling) -> int:
    """The largest number of steps that takes at most so many network evaluations per image, to compare samplers by.

    Raises ValueError if one step takes more.
    """
    for steps in range(most // SAMPLERS[sampling.sampler].evaluations, 0, -1):
        if evaluations(transport, steps, sampling) <= most:
            return steps
    least = evaluations(transport, 1, sampling)
    raise ValueError(f"evaluations is {most}; one step of {sampling.sampler} takes {least}")


def padded(plan: SamplingPlan) -> SamplingPlan:
    """The plan with evaluations appended that do not take place, to a length of PADDED or the next power of two."""
    count = len(plan.t)
    length = max(PADDED, 1 << (count - 1).bit_length())
    return SamplingPlan(*(np.concatenate([part, np.repeat(part[-1:], length - count, axis=0)]) for part in plan))


def image_keys(seed: int, indices: jax.Array) -> jax.Array:
    """(B,) random keys, one per image index (B,) of a seed."""
    return jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))(indices)


def start_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """(B, …) standard normal noise of the given image shape, from each image's own key."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), shape))(keys)


def between(x: np.ndarray, y: np.ndarray, u: np.ndarray) -> np.ndarray:
    """(len(u), …) points from x at u = 0 to y at u = 1 along the great circle, as noises are joined; x, y: one image.

    The length goes linearly from that of x to that of y. Where x and y point to (nearly) opposite sides, or the same,
    the way is straight.
    """
    norm_x, norm_y = np.linalg.norm(x), np.linalg.norm(y)
    u = u.reshape(-1, *[1] * x.ndim)
    angle = np.arccos(np.clip(np.sum(x * y, dtype=np.float64) / (norm_x * norm_y), -1, 1))
    if min(angle, np.pi - angle) < 1e-6:
        return (1 - u) * x + u * y
    direction = (np.sin((1 - u) * angle) * x / norm_x + np.sin(u * angle) * y / norm_y) / np.sin(angle)
    return ((1 - u) * norm_x + u * norm_y) * direction


def sample(
    net: Net,
    plan: SamplingPlan,
    x: jax.Array,
    condition: Any,
    null_condition: Any,
    keys: jax.Array,
    guidance: float = 1.0,
    trajectory: bool = False,
    count: jax.Array | None = None,
) -> jax.Array:
    """Images (B, h, w, C) from states x of that shape, noise as a rule, or the trajectory (n + 1, B, h, w, C), x first.

    condition, null_condition: pytrees of (B, …) arrays. keys: (B,) from `image_keys`, for samplers with fresh noise.
    guidance: the scale where the plan is guided; 1 compiles no second evaluation. count: how many evaluations of the
    plan take place, all by default and always for trajectories, which hold the state after every evaluation; so one
    program serves all step counts up to the plan's length (see `padded`).
    """

    def ask(x, t, s, condition):
        times = jnp.full((2, len(x)), jnp.stack([t, s])[:, None])
        return Query(x, times[0], times[1], condition)

    def predict(x, t, s, guided):
        def plain():
            return net((ask(x, t, s, condition),))[0].F

        def with_guidance():
            conditional, unconditional = net((ask(x, t, s, condition), ask(x, t, s, null_condition)))
            return unconditional.F + guidance * (conditional.F - unconditional.F)

        return plain() if guidance == 1.0 else jax.lax.cond(guided, with_guidance, plain)

    def evaluate(index, carry):
        states, predictions = carry  # tuples, the latest first
        t, s, a, b, c, guided = (part[index] for part in plan)
        predictions = (predict(states[0], t, s, guided).astype(x.dtype), *predictions[:-1])
        xi = jax.lax.cond(
            c > 0,
            lambda: jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index + 1), x.shape[1:], x.dtype))(
                keys
            ),
            lambda: jnp.zeros_like(x),
        )
        pairs = zip(states, predictions, strict=True)
        following = sum(a[k] * state + b[k] * F for k, (state, F) in enumerate(pairs)) + c * xi
        return (following, *states[:-1]), predictions

    plan = SamplingPlan(*(jnp.asarray(part, x.dtype) for part in plan[:-1]), jnp.asarray(plan.guided))
    length, memory = plan.a.shape
    nothing = jnp.zeros_like(x)
    carry = (x, *[nothing] * (memory - 1)), (nothing,) * memory
    if not trajectory:
        return jax.lax.fori_loop(0, length if count is None else count, evaluate, carry)[0][0]

    def keep(carry, index):
        carry = evaluate(index, carry)
        return carry, carry[0][0]

    _, path = jax.lax.scan(keep, carry, jnp.arange(length))
    return jnp.concatenate([x[None], path])
