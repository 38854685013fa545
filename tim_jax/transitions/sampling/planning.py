"""From settings and a number of steps to times, and from times to a plan of network evaluations (see `plans.py`)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from tim_jax.transitions.prediction import share
from tim_jax.transitions.sampling import steering
from tim_jax.transitions.sampling.grids import make_grid
from tim_jax.transitions.sampling.jumps import STOCHASTIC
from tim_jax.transitions.sampling.plans import SamplingPlan, host_transport, on_host
from tim_jax.transitions.sampling.samplers import SAMPLERS
from tim_jax.transitions.sampling.settings import LearnedPlans, Sampling
from tim_jax.transitions.transports import Transport

PADDED = 128  # evaluations that a padded plan has room for


def time_grid(
    transport: Transport, steps: int, sampling: Sampling | None = None, start: float | None = None
) -> np.ndarray:
    """Returns the times (steps + 1,) float64 of a sampling run, falling to T_min.

    Args:
        transport: The transport.
        steps: The number of steps, at least 1.
        sampling: Says which grid or learned plan; uniform by default.
        start: The first time, in (T_min, T_max]; T_max by default.

    Raises:
        ValueError: Steps or start are out of range, or an optimal grid or a plan has not been found for them.
    """
    sampling = sampling or Sampling()
    if sampling.plan == "learned":
        plan = learned_plan(steps, sampling)
        if start not in (None, transport.T_max):
            raise ValueError(
                f"sampling.plan is 'learned'; it must be 'sampler' for a start at {start}, as a learned one starts "
                "from noise"
            )
        return np.append(plan.t[ends_of_steps(plan, steps, sampling)[:-1]], transport.T_min)
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


def learned_plan(steps: int, sampling: Sampling) -> SamplingPlan:
    """Returns the learned plan of a number of steps, in times of the transport.

    Raises:
        ValueError: None has been learned for them, or it was for other settings.
    """
    known = sampling.learned or LearnedPlans({}, {})
    command = f"python -m tim_jax.grid --workdir=… --kind=learned --steps={steps}"
    if steps not in known.plans:
        counts = ", ".join(map(str, sorted(known.plans))) or "no number of"
        raise ValueError(
            f"sampling.plan is 'learned'; it must have been learned for {steps} steps, and has been for {counts}: "
            f"{command} learns it"
        )
    for key, value in sampling.depended_on().items():
        if value != (before := known.settings.get(key, value)):
            raise ValueError(
                f"sampling.{key} is {value!r}; it must be {before!r}, which sampling.plan 'learned' was learned with: "
                f"{command} learns another"
            )
    return known.plans[steps]


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


def guidance_scale(scale: float | jax.Array, channels: int, x: jax.Array) -> float | jax.Array:
    """Returns the scale of guidance of states x (…, C), (1, …, C) and 1 from `channels` on; for 0 the scale itself."""
    if not channels:
        return scale
    acts = jnp.arange(x.shape[-1]) < channels
    return jnp.expand_dims(jnp.where(acts, jnp.asarray(scale, x.dtype), 1), range(x.ndim - 1))


def make_plan(transport: Transport, times: np.ndarray, sampling: Sampling) -> SamplingPlan:
    """Returns the plan of a sampling run, its times as the network sees them; see `plan_in_time`."""
    plan, host = plan_in_time(transport, times, sampling), host_transport(transport)
    if sampling.steering.active and times[0] > times[-1]:  # on the way to noise nothing is steered
        plan = plan._replace(steer=steering.weights(sampling.steering, host, np.asarray(times, np.float64)))
    return plan._replace(t=host.c_noise(plan.t), s=host.c_noise(plan.s))


def plan_in_time(transport: Transport, times: np.ndarray, sampling: Sampling) -> SamplingPlan:
    """Returns the plan of a sampling run, in times of the transport.

    Args:
        transport: The transport.
        times: (steps + 1,), falling towards data, or growing towards noise (inversion).
        sampling: The settings.

    Raises:
        ValueError: The times neither fall nor grow, the sampler cannot go from data to noise, or a plan was not
            learned for them.
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
    if sampling.plan == "learned":
        if not np.array_equal(times, time_grid(transport, len(times) - 1, sampling)):
            raise ValueError(
                "sampling.plan is 'learned'; it must be 'sampler' for times other than those that were learned, such "
                f"as {times[0]:.3g} to {times[-1]:.3g}"
            )
        return learned_plan(len(times) - 1, sampling)  # guided where the plan was that it began from
    if sampling.stochasticity:
        plan = STOCHASTIC[sampling.stochastic](transport, times, sampling.stochasticity)
    else:
        plan = sampler.plan(transport, times, **{key: getattr(sampling, key) for key in sampler.keys})
    plan = without_clipped_end(transport, times[-1], plan)
    if transport.augmented_dimensions and plan.c.any():
        raise ValueError(
            f"transport.augmented_dimensions is {transport.augmented_dimensions}; it must be 0 for sampling.sampler "
            f"{sampling.sampler!r} with stochasticity {sampling.stochasticity:g}, which draws Gaussian noise on the way"
        )
    return plan._replace(guided=guided_times(transport, plan.t, sampling))


def without_clipped_end(transport: Transport, end: float, plan: SamplingPlan) -> SamplingPlan:
    """Returns the plan without an evaluation at the end of the run, if x̂ or ε̂ is clipped there.

    By such an evaluation methods correct a state that they have predicted, and the velocity is too short there. So the
    last step of Heun's method is one of Euler's, as in JiT (arXiv 2511.13720).
    """
    whole = on_host(functools.partial(share, transport))(np.array(end)) == 1
    if whole or plan.t[-1] != end or len(plan.t) == 1:
        return plan
    shorter: SamplingPlan = jax.tree.map(lambda part: part[:-1], plan)
    return shorter


def evaluations(transport: Transport, steps: int, sampling: Sampling) -> int:
    """Returns the number of network evaluations per image, at most where the sampler skips some.

    Those with guidance count twice, and those of a refiner not at all.
    """
    plan = make_plan(transport, time_grid(transport, steps, sampling), sampling)
    made = np.ones(len(plan.t), bool) if plan.refined is None else plan.refined < 0
    return int(made.sum() + (plan.guided & made).sum()) * sampling.steering.passes


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
    sampler = SAMPLERS[sampling.sampler]
    if sampler.ends:
        found: np.ndarray = sampler.ends(steps=steps, **{key: getattr(sampling, key) for key in sampler.keys})
        found = np.minimum(found, len(plan.t))
        return found
    return np.append(sampler.evaluations * np.arange(steps), len(plan.t))


def check_pairs(sampling: Sampling, steps: int) -> None:
    """Raises ValueError where a run cannot be continued from two states, so that its way back is exact."""
    if not SAMPLERS[sampling.sampler].reversible:
        able = ", ".join(name for name, sampler in SAMPLERS.items() if sampler.reversible)
        raise ValueError(f"sampling.sampler is {sampling.sampler!r}; it must be {able} for two states of each image")
    if sampling.parallel:
        raise ValueError(
            f"sampling.parallel is {sampling.parallel}; it must be 0 for an exact way back by {sampling.sampler}"
        )
    if steps < 2:
        raise ValueError(f"steps is {steps}; it must be at least 2 for a way back by {sampling.sampler}")


def padded(plan: SamplingPlan) -> SamplingPlan:
    """Returns the plan with evaluations appended that do not take place, to PADDED or the next power of two."""
    count = len(plan.t)
    length = max(PADDED, 1 << (count - 1).bit_length())
    longer: SamplingPlan = jax.tree.map(
        lambda part: np.concatenate([part, np.repeat(part[-1:], length - count, axis=0)]), plan
    )
    return longer
