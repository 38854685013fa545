"""Multistep exponential solvers with the weights of their published implementations, where those are not exact.

A polynomial through the last predictions, integrated exactly, is `exponential.multistep`.
"""

import numpy as np

from tim_jax.transitions.sampling.exponential import NOISE_SCALES, jump
from tim_jax.transitions.sampling.plans import SamplingPlan, host_transport, of_data
from tim_jax.transitions.transports import Transport

RIEMANN_POINTS = 100
LEAST_VARIANCE = 1e-6  # below it, the published ER-SDE takes no noise


def dpm_solver(transport: Transport, times: np.ndarray, order: int) -> SamplingPlan:
    """DPM-Solver++(2M) and (3M) as published: an approximate weight of the slope, and of 3M half that of the curvature.

    So 3M is of second order. The first steps have a lower order, and of fewer than 10 the last ones.
    """
    keep, weight, h = jump(host_transport(transport), times[:-1], times[1:])
    alpha = host_transport(transport).alpha(times[1:])
    steps = len(h)
    weights = np.zeros((steps, order))
    for i in range(steps):
        most = min(order, i + 1, steps - i if steps < 10 else order)
        ratios = h[i - most + 1 : i][::-1] / h[i]  # of the last steps to this one, the latest first
        if not np.isfinite(ratios).all() or not np.isfinite(h[i]):
            most = 1
        weights[i, 0] = weight[i]
        slope = np.expm1(-h[i]) / h[i] + 1
        if most == 2:
            weights[i, :2] += weight[i] / 2 / ratios[0] * np.array([1, -1])
        if most == 3:
            first = np.array([1, -1, 0]) / ratios[0]
            second = (first - np.array([0, 1, -1]) / ratios[1]) / ratios.sum()
            weights[i] += alpha[i] * (slope * (first + ratios[0] * second) - (slope / h[i] - 0.5) * second)
    return of_data(transport, times[:-1], keep, weights)


def er_sde(transport: Transport, times: np.ndarray, order: int, noise_scale: str = "er_sde") -> SamplingPlan:
    """ER-SDE-Solvers, arXiv 2309.06169, algorithms 1 to 3: Taylor terms in λ, their integrals as sums of 100 points.

    For few steps the error falls with the second power, for many with the first: a hundredth of the first-order term is
    left by the sums. There are no Taylor terms into λ = 0, nor from a λ that was infinite.
    """
    host, scale = host_transport(transport), NOISE_SCALES[noise_scale]
    ratio, sigma, alpha = host.ratio(times), host.sigma(times[1:]), host.alpha(times[1:])
    with np.errstate(over="ignore", invalid="ignore"):
        relative = np.nan_to_num(scale(ratio[1:]) / scale(ratio[:-1]))
        keep, weight, _ = jump(host, times[:-1], times[1:], relative)
    steps = len(weight)
    weights = np.zeros((steps, order))
    weights[:, 0] = weight
    for i in range(1, steps):
        most = min(order, 1 + int(np.isfinite(ratio[:i]).sum()))
        lower, upper = ratio[i + 1], ratio[i]
        if lower == 0 or most == 1:
            continue
        u = lower + (upper - lower) / RIEMANN_POINTS * np.arange(RIEMANN_POINTS)
        inverse = (upper - lower) / RIEMANN_POINTS * lower * scale(lower) / (u * scale(u))  # φ_r/φ(u) du
        slope = np.array([1, -1, 0])[:order] / (ratio[i] - ratio[i - 1])
        weights[i] += alpha[i] * (lower - upper + inverse.sum()) * slope
        if most == 3:
            before = np.array([0, 1, -1]) / (ratio[i - 1] - ratio[i - 2])
            curvature = 2 * (slope - before) / (ratio[i] - ratio[i - 2])
            weights[i] += alpha[i] * ((lower - upper) ** 2 / 2 + np.sum((u - upper) * inverse)) * curvature
    variance = sigma**2 * (1 - relative**2)
    return of_data(transport, times[:-1], keep, weights, np.sqrt(np.where(variance < LEAST_VARIANCE, 0, variance)))
