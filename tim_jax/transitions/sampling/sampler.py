"""Sampling: from noise at T_max to data at T_min by a plan of network evaluations (see `plans.py`), in one loop.

Noise is keyed by (seed, image index), so that an image does not depend on its batch.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from tim_jax.transitions.derivative import Net
from tim_jax.transitions.sampling.diffusion import DIFFUSIONS, LAST_STEPS
from tim_jax.transitions.sampling.exponential import NOISE_SCALES
from tim_jax.transitions.sampling.grids import GRIDS, make_grid
from tim_jax.transitions.sampling.jumps import STOCHASTIC
from tim_jax.transitions.sampling.plans import SamplingPlan, host_transport
from tim_jax.transitions.sampling.samplers import SAMPLERS
from tim_jax.transitions.transports import Transport
from tim_jax.types import PyTree, Query

PADDED = 128  # evaluations that a padded plan has room for
FIRST = 2**31 - 1  # tells fresh noise in the first state from the first state's own, 0, and from that of later states
Predictor: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]  # (x, t, s, guided) → F
Carry: TypeAlias = tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]  # the last states and predictions


def _keys(sampler: str) -> tuple[str, ...]:
    """The settings that a sampler takes, none for the name "default"."""
    return SAMPLERS[sampler].keys if sampler in SAMPLERS else ()


# Keys that say how guidance and fresh noise act, `exclusive_ends` and `stochastic`, may be set where there is neither:
# configurations of published weights have them for whatever scales are asked for.
UNUSED = {
    ("sampling.guidance_low", "sampling.guidance_high"): (
        "sampling.guidance is 1",
        lambda c: c.sampling.guidance == 1,
    ),
    ("sampling.exclusive_ends",): (
        "guidance is an input of the network (objective.input_guidance)",
        lambda c: c.objective.input_guidance.max_scale != 1,
    ),
    ("sampling.shift",): ("sampling.grid is not 'shifted'", lambda c: c.sampling.grid != "shifted"),
    ("sampling.tolerance",): ("sampling.parallel is 0", lambda c: c.sampling.parallel == 0),
    ("sampling.noise_scale",): (
        "sampling.sampler is none of " + ", ".join(name for name in SAMPLERS if "noise_scale" in SAMPLERS[name].keys),
        lambda c: "noise_scale" not in _keys(c.sampling.sampler),
    ),
    ("sampling.diffusion", "sampling.diffusion_scale", "sampling.last_step"): (
        "sampling.sampler is none of " + ", ".join(name for name in SAMPLERS if "diffusion" in SAMPLERS[name].keys),
        lambda c: "diffusion" not in _keys(c.sampling.sampler),
    ),
}


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of a sampling run.

    Guidance is F_∅ + s (F_c − F_∅) with the scale s, in an interval of times. `stochastic` is how the flow map takes
    fresh noise after each jump but the first and the last: 'renoise' jumps further down and returns by the forward
    process, which keeps the marginals exactly for an exact flow map; 'euler' is the published first-order form.

    Two attributes are no keys of a configuration: `optimal_times`, the times of the grid 'optimal' by number of steps,
    and `guidance_input`, whether the network itself takes scale and interval, and needs no second evaluation.
    """

    ema: str = "slow"  # the weights: the name of an EMA, or "online" for the raw ones
    sampler: str = "flow_map"  # "default": the objective's, or a name in tim_jax.transitions.SAMPLERS
    grid: str = "uniform"  # a name in tim_jax.transitions.GRIDS, or "optimal" (python -m tim_jax.grid)
    shift: float = 3.0  # of the grid "shifted"; above 1: more steps near noise
    batch_size: int = 64  # images at once, at most
    guidance: float = 1.0  # scale; 1: none
    guidance_low: float = 0.0  # interval of guidance, as fractions of T_max
    guidance_high: float = 1.0
    exclusive_ends: bool = False  # leave the interval's ends out, T_max and so the first step among them: as published
    stochasticity: float = 0.0  # of the flow map; 0: none
    stochastic: str = "renoise"  # renoise, or euler: as published
    noise_scale: str = "ode"  # of dpm_solver_…m: a name in NOISE_SCALES; all but ode take fresh noise
    diffusion: str = "sbdm"  # of the samplers sde and sde_heun: a name in DIFFUSIONS, times the scale below
    diffusion_scale: float = 1.0
    last_step: str = "mean"  # of sde and sde_heun, without noise: mean, euler or tweedie
    parallel: int = 0  # evaluations that take place at once, in sweeps until they agree; 0: one after another
    tolerance: float = 1e-3  # of parallel: by which a state may still change, relative to the first ones
    optimal_times: Mapping[int, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    guidance_input: bool = False

    def check(self) -> None:
        """Raises ValueError, naming key and value, for invalid settings."""
        names: dict[str, Collection[str]] = {
            "sampler": SAMPLERS,
            "grid": [*GRIDS, "optimal"],
            "stochastic": STOCHASTIC,
            "noise_scale": NOISE_SCALES,
            "diffusion": DIFFUSIONS,
            "last_step": LAST_STEPS,
        }
        for key, table in names.items():
            if getattr(self, key) not in table:
                raise ValueError(f"sampling.{key} is {getattr(self, key)!r}; it must be one of {', '.join(table)}")
        if self.batch_size < 1:
            raise ValueError(f"sampling.batch_size is {self.batch_size}; it must be at least 1")
        if self.shift <= 0:
            raise ValueError(f"sampling.shift is {self.shift}; it must be above 0")
        if self.stochasticity < 0:
            raise ValueError(f"sampling.stochasticity is {self.stochasticity}; it must be at least 0")
        if self.parallel < 0:
            raise ValueError(f"sampling.parallel is {self.parallel}; it must be at least 0")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"sampling.tolerance is {self.tolerance}; it must lie in [0, 1)")
        if self.diffusion_scale < 0:
            raise ValueError(f"sampling.diffusion_scale is {self.diffusion_scale}; it must be at least 0")
        if self.stochasticity and self.sampler != "flow_map":
            raise ValueError(
                f"sampling.stochasticity is {self.stochasticity}; it must be 0 with sampling.sampler {self.sampler!r}"
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
    """Returns the times (steps + 1,) float64 of a sampling run, falling to T_min.

    Args:
        transport: The transport.
        steps: The number of steps, at least 1.
        sampling: Says which grid; uniform by default.
        start: The first time, in (T_min, T_max]; T_max by default.

    Raises:
        ValueError: Steps or start are out of range, or an optimal grid has not been found for them.
    """
    sampling = sampling or Sampling()
    if sampling.grid != "optimal":
        return make_grid(sampling.grid, transport, steps, start, sampling.shift)
    if steps not in sampling.optimal_times:
        known = ", ".join(map(str, sorted(sampling.optimal_times))) or "no number of"
        raise ValueError(
            f"sampling.grid is 'optimal'; it must have been found for {steps} steps, and has been for {known}: "
            f"python -m tim_jax.grid --workdir=… --steps={steps} finds it"
        )
    if start not in (None, transport.T_max):
        raise ValueError(
            f"sampling.grid is 'optimal'; it must be another grid for a start at {start}, as an optimal one starts "
            "from noise"
        )
    return np.array(sampling.optimal_times[steps], np.float64)


def guided_times(transport: Transport, times: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Returns (n,) bool, whether guidance acts on an evaluation at each of the times (n,)."""
    if sampling.guidance == 1.0 or sampling.guidance_input:
        return np.zeros(len(times), bool)
    low, high = sampling.guidance_low * transport.T_max, sampling.guidance_high * transport.T_max
    # Grid times carry rounding errors, so that they meet the ends of the interval within a tolerance only.
    tolerance = 1e-9 * transport.T_max * (-1 if sampling.exclusive_ends else 1)
    inside: np.ndarray = (times >= low - tolerance) & (times <= high + tolerance)
    return inside


def guidance_values(transport: Transport, sampling: Sampling) -> np.ndarray:
    """Returns (3,) float32, the scale of guidance and the times at which its interval begins and ends."""
    ends = np.array([sampling.guidance_low, sampling.guidance_high]) * transport.T_max
    return np.array([sampling.guidance, *np.maximum(ends, transport.T_min)], np.float32)


def guidance_inputs(transport: Transport, sampling: Sampling, count: int, dtype: DTypeLike) -> jax.Array:
    """Returns (count, 3), scale and interval of guidance, for a network that takes them as inputs."""
    return jnp.tile(jnp.asarray(guidance_values(transport, sampling), dtype), (count, 1))


def make_plan(transport: Transport, times: np.ndarray, sampling: Sampling) -> SamplingPlan:
    """Returns the plan of a sampling run.

    Args:
        transport: The transport.
        times: (steps + 1,), falling towards data, or growing towards noise (inversion).
        sampling: The settings.

    Raises:
        ValueError: The times neither fall nor grow, or the sampler cannot go from data to noise.
    """
    times = np.asarray(times, np.float64)
    falls, grows = (np.diff(times) < 0).all(), (np.diff(times) > 0).all()
    if len(times) < 2 or not (falls or grows):
        raise ValueError(f"times {times}: expected two or more that fall, or that grow")
    sampler = SAMPLERS[sampling.sampler]
    if grows and (sampling.stochasticity or not sampler.invertible):
        able = ", ".join(name for name, sampler in SAMPLERS.items() if sampler.invertible)
        raise ValueError(
            f"sampling.sampler, sampling.stochasticity are {sampling.sampler!r}, {sampling.stochasticity}; they must "
            "be one "
            f"of {able} and 0 from data to noise"
        )
    if sampling.stochasticity:
        plan = STOCHASTIC[sampling.stochastic](transport, times, sampling.stochasticity)
    else:
        plan = sampler.plan(transport, times, **{key: getattr(sampling, key) for key in sampler.keys})
    c_noise = host_transport(transport).c_noise
    return plan._replace(t=c_noise(plan.t), s=c_noise(plan.s), guided=guided_times(transport, plan.t, sampling))


def evaluations(transport: Transport, steps: int, sampling: Sampling) -> int:
    """Returns the number of network evaluations per image; those with guidance count twice."""
    plan = make_plan(transport, time_grid(transport, steps, sampling), sampling)
    return len(plan.t) + int(plan.guided.sum())


def steps_for(transport: Transport, max_evaluations: int, sampling: Sampling) -> int:
    """Returns the largest number of steps within a budget of network evaluations per image, to compare samplers by.

    Raises:
        ValueError: One step needs more.
    """
    for steps in range(max_evaluations // SAMPLERS[sampling.sampler].evaluations + 1, 0, -1):
        if evaluations(transport, steps, sampling) <= max_evaluations:
            return steps
    needed = evaluations(transport, 1, sampling)
    raise ValueError(f"evaluations is {max_evaluations}; one step of {sampling.sampler} takes {needed}")


def ends_of_steps(plan: SamplingPlan, steps: int, sampling: Sampling) -> np.ndarray:
    """Returns after how many evaluations of a plan each of the times (steps + 1,) is reached, 0 first."""
    return np.append(SAMPLERS[sampling.sampler].evaluations * np.arange(steps), len(plan.t))


def padded(plan: SamplingPlan) -> SamplingPlan:
    """Returns the plan with evaluations appended that do not take place, to PADDED or the next power of two."""
    count = len(plan.t)
    length = max(PADDED, 1 << (count - 1).bit_length())
    return SamplingPlan(*(np.concatenate([part, np.repeat(part[-1:], length - count, axis=0)]) for part in plan))


def image_keys(seed: int | jax.Array, indices: jax.Array) -> jax.Array:
    """Returns random keys (B,), one per image index (B,) of a seed."""
    keys: jax.Array = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))(indices)
    return keys


def start_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns standard normal noise (B, …) of a given image shape, each from its image's own key (B,)."""
    noise: jax.Array = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), shape))(keys)
    return noise


def slerp(x: np.ndarray, y: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Interpolates between two noises: spherically in direction, linearly in length.

    Where x and y point in (nearly) the same or opposite directions, the interpolation is linear.

    Args:
        x, y: The ends (…), one image each.
        u: Positions (n,) from 0, at x, to 1, at y.

    Returns:
        The points (n, …).
    """
    norm_x, norm_y = np.linalg.norm(x), np.linalg.norm(y)
    u = u.reshape(-1, *[1] * x.ndim)
    angle = np.arccos(np.clip(np.sum(x * y, dtype=np.float64) / (norm_x * norm_y), -1, 1))
    points: np.ndarray
    if min(angle, np.pi - angle) < 1e-6:
        points = (1 - u) * x + u * y
    else:
        direction = (np.sin((1 - u) * angle) * x / norm_x + np.sin(u * angle) * y / norm_y) / np.sin(angle)
        points = ((1 - u) * norm_x + u * norm_y) * direction
    return points


def predictor(net: Net, condition: PyTree, null_condition: PyTree, guidance: float | jax.Array) -> Predictor:
    """Returns (x, t, s, guided) → F, guided where the scalar `guided` says so; see `sample` for the arguments."""

    def make_query(x: jax.Array, t: jax.Array, s: jax.Array, condition: PyTree) -> Query:
        times = jnp.full((2, len(x)), jnp.stack([t, s])[:, None])
        return Query(x, times[0], times[1], condition)

    def predict(x: jax.Array, t: jax.Array, s: jax.Array, guided: jax.Array) -> jax.Array:
        def without_guidance() -> jax.Array:
            return net((make_query(x, t, s, condition),))[0].F

        def with_guidance() -> jax.Array:
            conditional, unconditional = net((make_query(x, t, s, condition), make_query(x, t, s, null_condition)))
            return unconditional.F + guidance * (conditional.F - unconditional.F)

        if not isinstance(guidance, jax.Array) and guidance == 1.0:
            return without_guidance().astype(x.dtype)
        F: jax.Array = jax.lax.cond(guided, with_guidance, without_guidance)
        return F.astype(x.dtype)

    return predict


def fresh_noise(keys: jax.Array, which: jax.Array | int, like: jax.Array) -> jax.Array:
    """Returns ξ (B, …) of a state, each from its image's key (B,) and the state's number."""

    def of_image(key: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, which), like.shape[1:], like.dtype)

    noise: jax.Array = jax.vmap(of_image)(keys)
    return noise


def sample(
    net: Net,
    plan: SamplingPlan,
    x: jax.Array,
    condition: PyTree,
    null_condition: PyTree,
    keys: jax.Array,
    guidance: float | jax.Array = 1.0,
    trajectory: bool = False,
    count: jax.Array | int | None = None,
) -> jax.Array:
    """Runs a plan from given states.

    Args:
        net: The network.
        plan: The plan, of n evaluations.
        x: The first states (B, …), noise as a rule.
        condition, null_condition: Pytrees of (B, …) arrays.
        keys: Random keys (B,) from `image_keys`, for samplers with fresh noise.
        guidance: The scale where the plan is guided; the number 1 compiles no second evaluation, and one program serves
            all scales that are arrays.
        trajectory: Whether to return all states.
        count: The number of evaluations that take place; all by default, and always for trajectories. So one program
            serves all step counts up to the plan's length (see `padded`).

    Returns:
        Samples (B, …), or for a trajectory the states (n + 1, B, …) before and after every evaluation.
    """

    predict = predictor(net, condition, null_condition, guidance)

    def noised(state: jax.Array, c: jax.Array, which: jax.Array | int) -> jax.Array:
        fresh: jax.Array = jax.lax.cond(c > 0, lambda: fresh_noise(keys, which, x), lambda: jnp.zeros_like(x))
        return state + c * fresh

    t_n, s_n, a_nk, b_nk, c_n = (jnp.asarray(part, x.dtype) for part in plan[:-1])
    guided_n = jnp.asarray(plan.guided)

    def evaluate(index: jax.Array, carry: Carry) -> Carry:
        states, predictions = carry  # the latest first
        t, s, a, b, c, guided = (part[index] for part in (t_n, s_n, a_nk, b_nk, c_n[1:], guided_n))
        predictions = (predict(states[0], t, s, guided), *predictions[:-1])
        pairs = zip(states, predictions, strict=True)
        terms = [a[k] * state + b[k] * F for k, (state, F) in enumerate(pairs)]
        return (noised(sum(terms[1:], terms[0]), c, index + 1), *states[:-1]), predictions

    length, memory = a_nk.shape
    nothing = jnp.zeros_like(x)
    carry = (noised(x, c_n[0], FIRST), *[nothing] * (memory - 1)), (nothing,) * memory
    if not trajectory:
        last: Carry = jax.lax.fori_loop(0, length if count is None else count, evaluate, carry)
        return last[0][0]

    def collect(carry: Carry, index: jax.Array) -> tuple[Carry, jax.Array]:
        carry = evaluate(index, carry)
        return carry, carry[0][0]

    _, states = jax.lax.scan(collect, carry, jnp.arange(length))
    return jnp.concatenate([x[None], states])
