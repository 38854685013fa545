"""Exponential solvers: the data prediction x̂ is integrated as a polynomial in ln λ, λ = σ/α, and all else exactly.

For a noise scale φ (arXiv 2309.06169) the state at r follows from the one at t by

    x_r = α_r [φ_r/φ_t · x_t/α_t + φ_r ∫_{λ_r}^{λ_t} x̂(u) φ'(u)/φ(u)² du + √(λ_r² − λ_t² φ_r²/φ_t²) ξ]

φ(λ) = λ is the probability-flow ODE; all others are SDEs with the same marginals. Published solvers whose weights are
other ones are in `published.py`.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from tim_jax.transitions.sampling.plans import HostTransport, SamplingPlan, host_transport, of_data
from tim_jax.transitions.transports import Transport

NoiseScale: TypeAlias = Callable[[np.ndarray], np.ndarray]  # φ(λ)/λ, elementwise, also of λ = ∞
Between: TypeAlias = Callable[[Transport, np.ndarray, np.ndarray, float], np.ndarray]

NOISE_SCALES: dict[str, NoiseScale] = {
    "ode": np.ones_like,  # φ = λ
    "sde": lambda ratio: ratio,  # λ²: the reverse SDE of the forward process
    "power": np.sqrt,  # λ^1.5
    "er_sde": lambda ratio: np.exp(ratio**0.3) + 10,  # the one that is recommended
}
LOWER_LAST = 15  # steps, of fewer than which the last ones have a lower order
NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(32)


def in_ratio(transport: Transport, t: np.ndarray, r: np.ndarray, share: float | np.ndarray) -> np.ndarray:
    """The times a share of the way from t to r in ln λ, or in time where an end has no finite ln λ."""
    host = host_transport(transport)
    ratio_t, ratio_r = host.ratio(t), host.ratio(r)
    finite = np.isfinite(ratio_t) & (ratio_r > 0)
    ratio = np.where(finite, ratio_t, 1.0) ** (1 - share) * np.where(finite, ratio_r, 1.0) ** share
    times: np.ndarray = np.where(finite, host.time_of_ratio(ratio), in_time(transport, t, r, share))
    return times


def in_time(transport: Transport, t: np.ndarray, r: np.ndarray, share: float | np.ndarray) -> np.ndarray:
    """The times a share of the way from t to r."""
    times: np.ndarray = t + share * (r - t)
    return times


def dpm_solver_2s(transport: Transport, times: np.ndarray, between: Between = in_ratio) -> SamplingPlan:
    """DPM-Solver++(2S), arXiv 2211.01095, algorithm 1: x̂ also from half way between. Second order."""
    t, r = times[:-1], times[1:]
    s = between(transport, t, r, 1 / 2)
    host, none = host_transport(transport), np.zeros_like(t)
    keep_s, weight_s, h_s = jump(host, t, s)
    keep, weight, h = jump(host, t, r)
    with np.errstate(invalid="ignore"):
        share = np.where(np.isfinite(h), h / (2 * h_s), 1.0)  # of x̂ at s; 1 where s is half way
    return of_data(
        transport,
        _stages((t,), (s,)).ravel(),
        _stages((keep_s, none), (none, keep)),
        _stages((weight_s, none), (share * weight, (1 - share) * weight)),
    )


def dpm_solver_3s(transport: Transport, times: np.ndarray, between: Between = in_ratio) -> SamplingPlan:
    """DPM-Solver++(3S), arXiv 2206.00927 and 2211.01095: x̂ also from a third and two thirds between. Third order."""
    t, r = times[:-1], times[1:]
    first, second = between(transport, t, r, 1 / 3), between(transport, t, r, 2 / 3)
    host, none = host_transport(transport), np.zeros_like(t)
    (keep_1, weight_1, h_1), (keep_2, weight_2, h_2), (keep, weight, h) = (jump(host, t, s) for s in (first, second, r))

    def slope(s: np.ndarray, to: np.ndarray, weight: np.ndarray, h_s: np.ndarray, h: np.ndarray) -> np.ndarray:
        """The weight of x̂_s in a jump over which x̂ is the line through those at t and s."""
        with np.errstate(invalid="ignore"):
            return np.where(np.isfinite(h), host.alpha(to) * (np.expm1(-h) / h + 1) * h / h_s, weight)

    of_first, of_second = slope(first, second, weight_2, h_1, h_2), slope(second, r, weight, h_2, h)
    return of_data(
        transport,
        _stages((t,), (first,), (second,)).ravel(),
        _stages((keep_1, none, none), (none, keep_2, none), (none, none, keep)),
        _stages((weight_1, none, none), (of_first, weight_2 - of_first, none), (of_second, none, weight - of_second)),
    )


def multistep(transport: Transport, times: np.ndarray, order: int, noise_scale: str = "ode") -> SamplingPlan:
    """x̂ is the polynomial through the last `order` of them: DPM-Solver++, arXiv 2211.01095, and as an SDE.

    Some steps use fewer points and so have a lower order: the first ones; of fewer than 15 steps the last ones; those
    at ends where ln λ is infinite; and steps of more than twice the length of the one before, over which a polynomial
    would lead astray.
    """
    host = host_transport(transport)
    scale = NOISE_SCALES[noise_scale]
    ratio = host.ratio(times)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        log_ratio = np.log(ratio)
        lengths = -np.diff(log_ratio)
        relative = np.nan_to_num(scale(ratio[1:]) / scale(ratio[:-1]))
    keep, weight, _ = jump(host, times[:-1], times[1:], relative)
    steps = len(lengths)
    weights = np.zeros((steps, order))
    for i, h in enumerate(lengths):
        points = [i]
        if i > 0 and h <= 2 * lengths[i - 1] < np.inf:
            most = min(order, i + 1, steps - i if steps < LOWER_LAST else order)
            points = [i - k for k in range(most) if np.isfinite(log_ratio[i - k])]
        weights[i, 0] = weight[i]  # of one point
        if len(points) > 1:
            moments = _moments(scale, ratio[i], h, len(points))
            weights[i, : len(points)] = host.alpha(times[i + 1]) * polynomial(log_ratio[points] - log_ratio[i], moments)
    c = host.sigma(times[1:]) * np.sqrt(np.maximum(1 - relative**2, 0))
    return of_data(transport, times[:-1], keep, weights, c)


def jump(
    host: HostTransport, t: np.ndarray, r: np.ndarray, relative: np.ndarray | float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the weights of x_t and of a constant x̂ in x_r, and the step's length h in ln λ.

    Args:
        host: The transport.
        t, r: The times.
        relative: φ_r λ_t/(φ_t λ_r), 1 for the ODE.
    """
    keep = relative * host.sigma(r) / host.sigma(t)
    with np.errstate(divide="ignore"):
        return keep, host.alpha(r) - keep * host.alpha(t), np.log(host.ratio(t) / host.ratio(r))


def polynomial(points: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Returns weights w with Σ_j w_j points_j^k = moments_k for all k, which integrate any polynomial exactly."""
    length = np.abs(points).max()  # in units of it the system is well scaled
    powers = np.arange(len(points))
    return np.linalg.solve((points / length) ** powers[:, None], moments / length**powers)


def _moments(scale: NoiseScale, ratio: np.ndarray, h: float, count: int) -> np.ndarray:
    """Returns φ_r ∫ y^k φ'/φ² du for k < count, with y = ln(u/λ_t) from −h to 0, integrated by parts."""
    y = h / 2 * (NODES - 1)
    relative = scale(ratio * np.exp(-h)) / scale(ratio * np.exp(y)) * np.exp(-h - y)  # φ_r/φ(u)
    moments = [1 - scale(ratio * np.exp(-h)) / scale(ratio) * np.exp(-h)]
    for k in range(1, count):
        moments.append((-h) ** k + h / 2 * np.sum(NODE_WEIGHTS * relative * k * y ** (k - 1)))
    return np.array(moments)


def _stages(*stages: tuple[np.ndarray, ...]) -> np.ndarray:
    """Returns (steps · stages, K) of the columns (steps,) that every stage of a step has."""
    rows = np.stack([np.stack(stage, axis=-1) for stage in stages], axis=1)
    return rows.reshape(-1, rows.shape[-1])
