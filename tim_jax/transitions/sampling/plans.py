"""Samplers as plans of network evaluations F_j = F(y_j, t_j, s_j), each next state a linear combination of the last:

    y_{j+1} = Σ_k (a_{jk} y_{j−k} + b_{jk} F_{j−k}) + c_j ξ_j

The coefficients are computed here, on the host, in numpy's float64, so that times are exact whatever the type of the
state, and one loop (`sampler.sample`) takes the steps of every sampler. A new sampler is one function from a transport
and times (steps + 1,) to a SamplingPlan, and one line in SAMPLERS.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.transitions.jump import coefficient_A, coefficient_B, determinant
from tim_jax.transitions.transports import Scalar, Transport

HostScalar: TypeAlias = Callable[[np.ndarray], np.ndarray]  # a scalar function of float64 arrays, elementwise


class SamplingPlan(NamedTuple):
    """The n network evaluations of a sampling run.

    Attributes:
        t, s: The two times (n,) of each evaluation, after `make_plan` as the network sees them (c_noise).
        a, b: The weights (n, K) of the last K states and predictions, the latest first.
        c: The weight (n,) of fresh noise.
        guided: (n,) bool, where guidance acts; all others are float64.
    """

    t: np.ndarray
    s: np.ndarray
    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    guided: np.ndarray


def on_host(f: Scalar) -> HostScalar:
    """Returns a function of times as one of float64 numpy arrays, exact whatever type JAX computes in elsewhere."""

    def evaluate(t: np.ndarray) -> np.ndarray:
        t = np.asarray(t, np.float64)
        # Padded to one length, whatever the number of steps: JAX compiles every operation once for each length.
        padded = np.resize(t.ravel(), max(256, 1 << max(t.size - 1, 0).bit_length()))
        cpu = jax.default_device(jax.local_devices(backend="cpu")[0])
        with jax.ensure_compile_time_eval(), jax.enable_x64(True), cpu:
            return np.array(f(jnp.asarray(padded)))[: t.size].reshape(t.shape)

    return evaluate


@dataclasses.dataclass(frozen=True)
class HostTransport:
    """The functions of a Transport, `on_host`, and the coefficients of its jumps, all elementwise."""

    alpha: HostScalar
    sigma: HostScalar
    alpha_hat: HostScalar
    sigma_hat: HostScalar
    c_noise: HostScalar
    time_of_ratio: HostScalar

    # The equations of `jump` hold for numpy arrays and functions as they do for JAX's.

    def coefficient_A(self, t: np.ndarray, r: np.ndarray) -> np.ndarray:
        """Returns A_{t,r}."""
        return _evaluate(coefficient_A, self, t, r)

    def coefficient_B(self, t: np.ndarray, r: np.ndarray) -> np.ndarray:
        """Returns B_{t,r}."""
        return _evaluate(coefficient_B, self, t, r)

    def determinant(self, t: np.ndarray) -> np.ndarray:
        """Returns C_t."""
        return _evaluate(determinant, self, t)

    def ratio(self, t: np.ndarray) -> np.ndarray:
        """Returns the noise-to-signal ratio σ_t/α_t, infinite where α is 0."""
        with np.errstate(divide="ignore"):
            return self.sigma(t) / self.alpha(t)


def _evaluate(equation: Callable[..., object], host: HostTransport, *times: np.ndarray) -> np.ndarray:
    return np.asarray(equation(host, *times))


def host_transport(transport: Transport) -> HostTransport:
    """Returns the functions of a transport on the host."""
    names = (field.name for field in dataclasses.fields(HostTransport))
    return HostTransport(**{name: on_host(getattr(transport, name)) for name in names})


def ratios(transport: Transport, times: np.ndarray) -> np.ndarray:
    """Returns σ/α in float64 at times of any shape, infinite where α is 0."""
    return host_transport(transport).ratio(times)


def flow_map(transport: Transport, times: np.ndarray) -> SamplingPlan:
    """A jump by F(x_t, t, r) for each step, exact for an exact flow map (TiM)."""
    t, r = times[:-1], times[1:]
    host = host_transport(transport)
    return _plan(t, r, [host.coefficient_A(t, r)], [host.coefficient_B(t, r)])


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
    second = _plan(r, r, [1 - back_A / 2, np.full_like(t, 0.5)], [-back_B / 2, 0 * t])
    return _alternate(euler(transport, times), second)


def dpm_solver_2s(transport: Transport, times: np.ndarray) -> SamplingPlan:
    """DPM-Solver++(2S), arXiv 2211.01095: d(x/σ) = x̂ d(α/σ), with x̂ from half way in ln(α/σ). Second order.

    Where an end of the step has no finite ln(α/σ), x̂ is taken half way in time.
    """
    t, r = times[:-1], times[1:]
    host = host_transport(transport)
    ratio_t, ratio_r = host.ratio(t), host.ratio(r)
    finite = np.isfinite(ratio_t) & (ratio_r > 0)
    middle = np.sqrt(np.where(finite, ratio_t, 1.0) * np.where(finite, ratio_r, 1.0))
    s = np.where(finite, host.time_of_ratio(middle), (t + r) / 2)
    first = _plan(t, t, [host.coefficient_A(t, s)], [host.coefficient_B(t, s)])
    keep = host.sigma(r) / host.sigma(t)
    of_state, of_F = _data_prediction(host, s)
    weight = host.alpha(r) - keep * host.alpha(t)
    return _alternate(first, _plan(s, s, [weight * of_state, keep], [weight * of_F, 0 * t]))


def dpm_solver_3m(transport: Transport, times: np.ndarray) -> SamplingPlan:
    """DPM-Solver++(3M), arXiv 2211.01095: x̂ is the polynomial in λ = ln(α/σ) through the last three. Third order.

    x_r = (σ_r/σ_t) x_t + σ_r ∫ x̂ e^λ dλ, with the exact integral. Some steps use fewer points and so have a lower
    order: the first two; of fewer than 15 steps the last two (as published); those at ends where λ is infinite; and
    steps of more than twice the length of the one before, over which a polynomial would lead astray.
    """
    host = host_transport(transport)
    with np.errstate(divide="ignore"):
        half_log_snr = -np.log(host.ratio(times))
    alpha, sigma = host.alpha(times), host.sigma(times)
    of_state, of_F = _data_prediction(host, times)
    lengths = np.diff(half_log_snr)
    steps = len(lengths)
    a, b = np.zeros((2, steps, 3))
    for i, h in enumerate(lengths):
        points = [i]
        if i > 0 and h <= 2 * lengths[i - 1] < np.inf:
            order = min(3, i + 1, steps - i if steps < 15 else 3)
            points = [i - k for k in range(order) if np.isfinite(half_log_snr[i - k])]
        keep = sigma[i + 1] / sigma[i]
        weights = np.array([alpha[i + 1] - keep * alpha[i]])  # of one point: Euler's jump
        if len(points) > 1:
            weights = alpha[i + 1] * _exponential_weights(half_log_snr[points] - half_log_snr[i], h)
        a[i, 0] = keep
        a[i, : len(points)] += weights * of_state[points]
        b[i, : len(points)] = weights * of_F[points]
    return _plan(times[:-1], times[:-1], a.T, b.T)


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

    def slope(f: Scalar) -> np.ndarray:
        return on_host(lambda t: jax.jvp(f, (t,), (jnp.ones_like(t),))[1])(t)

    growth = host.alpha(t) * slope(transport.sigma) - slope(transport.alpha) * host.sigma(t)
    growth[[0, -1]] = 0
    drift = -rho * growth * (t - r) / host.determinant(t)
    a, b = jumps.a[:, 0] - drift * host.alpha_hat(t), jumps.b[:, 0] + drift * host.alpha(t)
    return _plan(t, r, [a], [b], np.sqrt(2 * rho * growth * host.sigma(t) * (t - r)))


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A sampling method.

    Attributes:
        plan: Makes the plan from the transport and the times (steps + 1,).
        evaluations: The number of network evaluations in a step.
        invertible: Whether the method also takes times that grow, from data to noise (inversion).
        single_step: Whether a step is a function of its state alone, not of steps before it or of fresh noise.
        diagonal: Whether the network is evaluated at r = t alone.
    """

    plan: Callable[[Transport, np.ndarray], SamplingPlan]
    evaluations: int = 1
    invertible: bool = False
    single_step: bool = False
    diagonal: bool = False


SAMPLERS = {
    "flow_map": Sampler(flow_map, invertible=True, single_step=True),
    "euler": Sampler(euler, invertible=True, single_step=True, diagonal=True),
    "heun": Sampler(heun, evaluations=2, invertible=True, single_step=True, diagonal=True),
    "dpm_solver_2s": Sampler(dpm_solver_2s, evaluations=2, single_step=True, diagonal=True),
    "dpm_solver_3m": Sampler(dpm_solver_3m, diagonal=True),
    "consistency": Sampler(consistency),
}
STOCHASTIC = {"renoise": renoise, "euler": published_noise}  # forms of the flow map with fresh noise


def _plan(
    t: np.ndarray,
    s: np.ndarray,
    a: Sequence[np.ndarray] | np.ndarray,
    b: Sequence[np.ndarray] | np.ndarray,
    c: np.ndarray | float = 0.0,
) -> SamplingPlan:
    """Returns a SamplingPlan from the columns of a and b; no evaluation is guided yet."""
    c = np.broadcast_to(c, t.shape)
    return SamplingPlan(t, s, np.stack(list(a), axis=-1), np.stack(list(b), axis=-1), c, np.zeros(t.shape, bool))


def _alternate(first: SamplingPlan, second: SamplingPlan) -> SamplingPlan:
    """Returns the plan of steps of two evaluations each, one of either plan in turn."""

    def interleave(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        if x.ndim == 2:  # weights of as many states
            x = np.pad(x, ((0, 0), (0, y.shape[1] - x.shape[1])))
        return np.stack([x, y], axis=1).reshape(-1, *y.shape[1:])

    return SamplingPlan(*map(interleave, first, second))


def _data_prediction(host: HostTransport, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns x̂ = (σ̂_t x_t − σ_t F)/C_t as weights of x_t and F."""
    C = host.determinant(t)
    return host.sigma_hat(t) / C, -host.sigma(t) / C


def _exponential_weights(points: np.ndarray, h: float) -> np.ndarray:
    """Returns weights w with Σ_j w_j p(points_j) = ∫_0^h e^{u−h} p(u) du for all polynomials p of as many terms."""
    moments = [-np.expm1(-h)]
    for k in range(1, len(points)):
        moments.append(h**k - k * moments[-1])
    powers = np.arange(len(points))
    # In units of h, in which the system is well scaled.
    return np.linalg.solve((points / h) ** powers[:, None], np.array(moments) / h**powers)


def _jump_and_return(transport: Transport, t: np.ndarray, s: np.ndarray, r: np.ndarray) -> SamplingPlan:
    """Returns the plan of jumps from t to s ≤ r by F(x_t, t, s), each followed by the forward process p(x_r | x_s).

    Where s = r there is no forward process.
    """
    host = host_transport(transport)
    keep = host.alpha(r) / host.alpha(s)
    variance = host.sigma(r) ** 2 - (keep * host.sigma(s)) ** 2
    a, b = keep * host.coefficient_A(t, s), keep * host.coefficient_B(t, s)
    return _plan(t, s, [a], [b], np.sqrt(np.maximum(variance, 0.0)))
