"""Reverse SDEs with any diffusion coefficient w_t ≥ 0, as in SiT (arXiv 2401.08740): dx = (v − w s) dt + √(2w) dW.

s = −ε̂/σ is the score and v = α' x̂ + σ' ε̂ the velocity; all have the marginals of the probability-flow ODE, w = 0. The
last step, to data, takes no noise.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from tim_jax.transitions.sampling.plans import (
    SamplingPlan,
    host_transport,
    in_turn,
    linear,
    of_data,
    slope,
    then,
    velocity,
)
from tim_jax.transitions.transports import Transport

Diffusion: TypeAlias = Callable[[float, np.ndarray, np.ndarray, np.ndarray], np.ndarray]

# w T_max by a scale k, u = t/T_max, σ, and the forward process' own w T_max, w = σσ' − σ² α'/α.
DIFFUSIONS: dict[str, Diffusion] = {
    "sbdm": lambda k, u, sigma, own: k * own,
    "constant": lambda k, u, sigma, own: np.full_like(u, k),
    "sigma": lambda k, u, sigma, own: k * sigma,
    "linear": lambda k, u, sigma, own: k * u,
    "decreasing": lambda k, u, sigma, own: (1 - k * np.cos(np.pi * u)) ** 2 / 4,
    "increasing_decreasing": lambda k, u, sigma, own: k * np.sin(np.pi * u) ** 2,
}
LAST_STEPS = ("mean", "euler", "tweedie")


def euler_maruyama(
    transport: Transport,
    times: np.ndarray,
    diffusion: str = "sbdm",
    diffusion_scale: float = 1.0,
    last_step: str = "mean",
) -> SamplingPlan:
    """Euler–Maruyama steps of the reverse SDE. First weak order."""
    t, r = times[:-2], times[1:-1]
    w = coefficient(transport, t, diffusion, diffusion_scale)
    of_state, of_F = velocity(transport, t, w)
    steps = linear(t, t, [1 + (r - t) * of_state], [(r - t) * of_F], np.sqrt(2 * w * (t - r)))
    return then(steps, last(transport, times[-2:], diffusion, diffusion_scale, last_step))


def sde_heun(
    transport: Transport,
    times: np.ndarray,
    diffusion: str = "sbdm",
    diffusion_scale: float = 1.0,
    last_step: str = "mean",
) -> SamplingPlan:
    """Noise first, then a step of Heun along the drift."""
    t, r = times[:-2], times[1:-1]
    w = coefficient(transport, t, diffusion, diffusion_scale)
    noise = np.append(np.sqrt(2 * w * (t - r)), 0.0)  # in the state that each step begins with
    of_state, of_F = velocity(transport, t, w)
    there = coefficient(transport, r, diffusion, diffusion_scale)
    state_there, F_there = velocity(transport, r, there)
    first = linear(t, t, [1 + (r - t) * of_state], [(r - t) * of_F])
    second = linear(
        r,
        r,
        [0.5 + (r - t) / 2 * state_there, np.full_like(t, 0.5)],
        [(r - t) / 2 * F_there, 0 * t],
        noise[1:],
    )
    steps = in_turn(first, second)
    steps = steps._replace(c=np.concatenate([noise[:1], steps.c[1:]]))
    return then(steps, last(transport, times[-2:], diffusion, diffusion_scale, last_step))


def last(transport: Transport, times: np.ndarray, diffusion: str, scale: float, last_step: str) -> SamplingPlan:
    """The step to data: along the drift (mean), along the velocity (euler), or to x̂ (tweedie)."""
    t, r = times[:1], times[1:]
    if last_step == "tweedie":
        return of_data(transport, t, 0 * t, host_transport(transport).alpha(r)[:, None])
    w = coefficient(transport, t, diffusion, scale) if last_step == "mean" else 0 * t
    of_state, of_F = velocity(transport, t, w)
    return linear(t, t, [1 + (r - t) * of_state], [(r - t) * of_F])


def coefficient(transport: Transport, t: np.ndarray, diffusion: str, scale: float) -> np.ndarray:
    """Returns w_t, 0 where it would be infinite: at times without signal, for the forward process' own."""
    host = host_transport(transport)
    sigma = host.sigma(t)
    with np.errstate(divide="ignore", invalid="ignore"):
        own = sigma * slope(transport.sigma)(t) - sigma**2 * slope(transport.alpha)(t) / host.alpha(t)
    w = DIFFUSIONS[diffusion](scale, t / transport.T_max, sigma, own * transport.T_max) / transport.T_max
    return np.where(np.isfinite(w), w, 0.0)
