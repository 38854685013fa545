"""Samplers that jump by F(x_t, t, r) or by F(x_t, t, t) from state to state, with and without fresh noise."""

import numpy as np

from tim_jax.transitions.sampling.plans import SamplingPlan, host_transport, in_turn, linear, slope, velocity
from tim_jax.transitions.transports import Transport


def flow_map(transport: Transport, times: np.ndarray) -> SamplingPlan:
    """A jump by F(x_t, t, r) for each step, exact for an exact flow map (TiM)."""
    t, r = times[:-1], times[1:]
    host = host_transport(transport)
    return linear(t, r, [host.coefficient_A(t, r)], [host.coefficient_B(t, r)])


def euler(transport: Transport, times: np.ndarray) -> SamplingPlan:
    """The same jump by the velocity F(x_t, t, t): x̂ and ε̂ are constant over the step (DDIM). First order."""
    jumps = flow_map(transport, times)
    return jumps._replace(s=jumps.t)


def heun(transport: Transport, times: np.ndarray) -> SamplingPlan:
    """The trapezoid rule for dx = x̂ dα + ε̂ dσ: Heun's in t for OT-FM, EDM's own in σ for VE. Second order.

    Euler's y at r, then the jump back from there: x_r = y + ½ (x_t − f_{r→t}(y)).
    """
    t, r = times[:-1], times[1:]
    host = host_transport(transport)
    back_A, back_B = host.coefficient_A(r, t), host.coefficient_B(r, t)
    second = linear(r, r, [1 - back_A / 2, np.full_like(t, 0.5)], [-back_B / 2, 0 * t])
    return in_turn(euler(transport, times), second)


def pseudo_corrector(transport: Transport, times: np.ndarray) -> SamplingPlan:
    """Heun's method with the slope of a step's end at hand for the next step's beginning (FlowTurbo, arXiv 2409.18128).

    The plan holds predicted states y: y_{i+1} = x_i + h_i v_i and x_{i+1} = x_i + h_i (v_i + v_{i+1})/2, v_i = v(y_i).
    One evaluation a step, and one more. Second order.
    """
    steps = len(times) - 1
    of_state, of_F = velocity(transport, times)
    h = np.diff(times)
    before = np.append(0.0, h[:-1])  # the step before, of which there is none at first
    # y_{i+1} − y_i = (h_i + h_{i−1}/2) v_i − h_{i−1}/2 v_{i−1}, and at the end x_n − y_n.
    now, last = np.append(h + before / 2, h[-1] / 2), np.append(-before / 2, -h[-1] / 2)
    a, b = np.zeros((2, steps + 1, 2))
    a[:, 0], b[:, 0] = 1 + now * of_state, now * of_F
    a[1:, 1], b[1:, 1] = last[1:] * of_state[:-1], last[1:] * of_F[:-1]
    return linear(times, times, a.T, b.T)


def consistency(transport: Transport, times: np.ndarray) -> SamplingPlan:
    """A jump to T_min by F(x_t, t, T_min), then fresh noise up to the next time: for models of r = T_min alone."""
    t, r = times[:-1], times[1:]
    return _jump_and_return(transport, t, np.full_like(t, transport.T_min), r)


def renoise(transport: Transport, times: np.ndarray, rho: float) -> SamplingPlan:
    """The flow map from t to s ≤ r, and back to r by the forward process p(x_r | x_s).

    s is where the squared noise-to-signal ratio is lower by ρ α_r (λ_t² − λ_r²), λ = σ/α, which to first order in t − r
    is the noise of the Euler form. In the first and the last step s = r.
    """
    t, r = times[:-1], times[1:]
    host = host_transport(transport)
    s = r.copy()
    square_t, square_r = host.ratio(t[1:-1]) ** 2, host.ratio(r[1:-1]) ** 2
    lowest = host.ratio(np.full_like(square_r, transport.T_min)) ** 2
    lower = np.sqrt(np.maximum(square_r - rho * host.alpha(r[1:-1]) * (square_t - square_r), lowest))
    s[1:-1] = np.clip(host.time_of_ratio(lower), transport.T_min, r[1:-1])
    return _jump_and_return(transport, t, s, r)


def published_noise(transport: Transport, times: np.ndarray, rho: float) -> SamplingPlan:
    """The flow map, then x −= ρ (ασ' − α'σ) ε̂ dt and x += √(2ρ (ασσ' − α'σ²) dt) ξ at time t.

    There is no noise in the first and the last step.
    """
    t, r = times[:-1], times[1:]
    jumps = flow_map(transport, times)
    host = host_transport(transport)

    growth = host.alpha(t) * slope(transport.sigma)(t) - slope(transport.alpha)(t) * host.sigma(t)
    growth[[0, -1]] = 0
    drift = -rho * growth * (t - r) / host.determinant(t)
    a, b = jumps.a[:, 0] - drift * host.alpha_hat(t), jumps.b[:, 0] + drift * host.alpha(t)
    return linear(t, r, [a], [b], np.sqrt(2 * rho * growth * host.sigma(t) * (t - r)))


def _jump_and_return(transport: Transport, t: np.ndarray, s: np.ndarray, r: np.ndarray) -> SamplingPlan:
    """Returns the plan of jumps from t to s ≤ r by F(x_t, t, s), each followed by the forward process p(x_r | x_s).

    Where s = r there is no forward process.
    """
    host = host_transport(transport)
    keep = host.alpha(r) / host.alpha(s)
    variance = host.sigma(r) ** 2 - (keep * host.sigma(s)) ** 2
    a, b = keep * host.coefficient_A(t, s), keep * host.coefficient_B(t, s)
    return linear(t, s, [a], [b], np.sqrt(np.maximum(variance, 0.0)))


STOCHASTIC = {"renoise": renoise, "euler": published_noise}  # forms of the flow map with fresh noise
