"""EPD-Solver (arXiv 2507.14797): in each step several slopes, all reached from the first one alone.

From x_t with its slope v_t, the points k = 1 … K of a step to r lie at times m_k between t and r, at

    x_{m_k} = x_t + (m_k − t) v_t,    x_r = x_t + (r − t) Σ_k w_k d_k v_k,

where v_k is the slope at x_{m_k}, its network being told a noise-to-signal ratio of τ_k λ_{m_k}. None of the K
evaluations needs another one's result, so that they could run side by side; a plan takes them in turn. The published
form, in σ and for VE, is the same, and that of other transports is in their own time.
"""

import numpy as np

from tim_jax.transitions.sampling.exponential import in_ratio
from tim_jax.transitions.sampling.plans import (
    SamplingPlan,
    data_prediction,
    host_transport,
    in_turn,
    linear,
    slope,
    velocity,
)
from tim_jax.transitions.transports import Transport


def epd(transport: Transport, times: np.ndarray, points: int) -> SamplingPlan:
    """EPD-Solver before anything is learned: points evenly spread in ln λ, of equal weight. Second order."""
    shape = len(times) - 1, points
    positions = np.broadcast_to(np.arange(1, points + 1) / (points + 1), shape)
    return parallel_gradients(transport, times, positions, np.full(shape, 1 / points))


def parallel_gradients(
    transport: Transport,
    times: np.ndarray,
    positions: np.ndarray,
    weights: np.ndarray,
    directions: np.ndarray | float = 1.0,
    time_scales: np.ndarray | float = 1.0,
) -> SamplingPlan:
    """Returns the plan of 1 + K evaluations a step by the parameters of EPD-Solver.

    Args:
        transport: The transport.
        times: (steps + 1,), falling.
        positions: (steps, K), how far from t to r in ln λ each point lies, in (0, 1); in time where an end has no
            finite ln λ.
        weights: w (steps, K), which sum to 1 over K.
        directions: d (steps, K), or one number, which scales the slope of each point.
        time_scales: τ (steps, K), or one number, which scales the noise-to-signal ratio that the network is told.
    """
    t, r = times[:-1], times[1:]
    steps, K = positions.shape
    host, none = host_transport(transport), np.zeros((steps, K + 1))
    effect = weights * directions * (r - t)[:, None]
    of_state, of_F = velocity(transport, t)
    m = np.stack([in_ratio(transport, t, r, share) for share in positions.T])  # (K, steps)
    told = host.time_of_ratio(time_scales * host.ratio(m).T).T
    told = np.clip(np.where(np.broadcast_to(time_scales, (steps, K)).T == 1, m, told), transport.T_min, transport.T_max)
    # v = α' x̂ + σ' ε̂ at m, with x̂ of the network at the time that it is told.
    of_data, of_noise = slope(transport.alpha)(m), slope(transport.sigma)(m) / host.sigma(m)
    data_of_state, data_of_F = data_prediction(host, told)
    of_data = of_data - of_noise * host.alpha(m)
    point_of_state, point_of_F = of_noise + of_data * data_of_state, of_data * data_of_F

    stages = []
    for k in range(K):  # The evaluation before point k has x_t and F_t k places back.
        a, b = none.copy(), none.copy()
        a[:, k], b[:, k] = 1 + (m[k] - t) * of_state, (m[k] - t) * of_F
        stages.append(linear(told[k - 1] if k else t, told[k - 1] if k else t, a.T, b.T))
    a, b = none.copy(), none.copy()
    a[:, :K], b[:, :K] = (effect.T * point_of_state)[::-1].T, (effect.T * point_of_F)[::-1].T  # the latest first
    a[:, K] = 1
    return in_turn(*stages, linear(told[-1], told[-1], a.T, b.T))
