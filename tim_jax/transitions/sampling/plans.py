"""Samplers as plans of network evaluations F_j = F(y_j, t_j, s_j), each next state a linear combination of the last:

    y_{j+1} = Σ_k (a_{jk} y_{j−k} + b_{jk} F_{j−k}) + c_{j+1} ξ_{j+1}

The coefficients are computed here, on the host, in numpy's float64, so that times are exact whatever the type of the
state, and one loop (`sampler.sample`) takes the steps of every sampler. A new sampler is one function from a transport
and times (steps + 1,) to a SamplingPlan, and one line in SAMPLERS (`samplers.py`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.transitions.jump import coefficient_A, coefficient_B, determinant
from tim_jax.transitions.sampling.rules import Rule
from tim_jax.transitions.sampling.steering import Weights
from tim_jax.transitions.transports import Scalar, Transport

HostScalar: TypeAlias = Callable[[np.ndarray], np.ndarray]  # a scalar function of float64 arrays, elementwise


class SamplingPlan(NamedTuple):
    """The n network evaluations of a sampling run.

    Attributes:
        t, s: The two times (n,) of each evaluation, after `make_plan` as the network sees them (c_noise).
        a, b: The weights (n, K) of the last K states and predictions, the latest first.
        c: The weight (n + 1,) of fresh noise in each state, of which the first is what is given.
        guided: (n,) bool, where guidance acts; all others are float64.
        rule: What of it depends on the image, if anything does.
        refined: (n,) how many predictions before the last one lies that a refiner makes each of, −1 where the network
            predicts; None where it always does.
        steer: What a run that is steered knows of each evaluation; None of others.
    """

    t: np.ndarray
    s: np.ndarray
    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    guided: np.ndarray
    rule: Rule | None = None
    refined: np.ndarray | None = None
    steer: Weights | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns times, weights and where guidance acts, by name: all that every plan has."""
        return {name: part for name, part in self._asdict().items() if name not in ("rule", "refined", "steer")}


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


def slope(f: Scalar) -> HostScalar:
    """Returns the derivative of a function of time, on the host."""
    return on_host(lambda t: jax.jvp(f, (t,), (jnp.ones_like(t),))[1])


def host_transport(transport: Transport) -> HostTransport:
    """Returns the functions of a transport on the host."""
    names = (field.name for field in dataclasses.fields(HostTransport))
    return HostTransport(**{name: on_host(getattr(transport, name)) for name in names})


def ratios(transport: Transport, times: np.ndarray) -> np.ndarray:
    """Returns σ/α in float64 at times of any shape, infinite where α is 0."""
    return host_transport(transport).ratio(times)


def linear(
    t: np.ndarray,
    s: np.ndarray,
    a: Sequence[np.ndarray] | np.ndarray,
    b: Sequence[np.ndarray] | np.ndarray,
    c: np.ndarray | float = 0.0,
) -> SamplingPlan:
    """Returns a SamplingPlan from the columns of a and b and the noise c of states after the first; none is guided."""
    c = np.concatenate([[0.0], np.broadcast_to(c, t.shape)])
    return SamplingPlan(t, s, np.stack(list(a), axis=-1), np.stack(list(b), axis=-1), c, np.zeros(t.shape, bool))


def of_data(
    transport: Transport, t: np.ndarray, keep: np.ndarray, weights: np.ndarray, c: np.ndarray | float = 0.0
) -> SamplingPlan:
    """Returns the plan of y_{j+1} = Σ_k (keep_{jk} y_{j−k} + weights_{jk} x̂_{j−k}) + c_{j+1} ξ_{j+1}, x̂ at r = t.

    Args:
        transport: The transport.
        t: The times (n,) of the evaluations.
        keep: (n, K), or (n,) for the last state alone.
        weights: (n, K); those of evaluations before the first are 0.
        c: (n,) or one number.
    """
    of_state, of_F = data_prediction(host_transport(transport), t)
    before = np.maximum(np.arange(len(t))[:, None] - np.arange(weights.shape[1]), 0)
    a, b = weights * of_state[before], weights * of_F[before]
    a[:, : 1 if keep.ndim == 1 else keep.shape[1]] += keep.reshape(len(t), -1)
    return linear(t, t, a.T, b.T, c)


def in_turn(*plans: SamplingPlan) -> SamplingPlan:
    """Returns the plan of steps of several evaluations each, one of every plan in turn."""
    memory = max(plan.a.shape[1] for plan in plans)

    def interleave(*parts: np.ndarray) -> np.ndarray:
        return np.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])

    later = [remembering(plan, memory)._replace(c=plan.c[1:]) for plan in plans]
    joined: SamplingPlan = jax.tree.map(interleave, *later)
    return joined._replace(c=np.append(plans[0].c[0], joined.c))


def then(first: SamplingPlan, second: SamplingPlan) -> SamplingPlan:
    """Returns the plan of all evaluations of one plan, then those of another, which adds no noise to its start."""
    memory = max(first.a.shape[1], second.a.shape[1])
    later = remembering(second, memory)._replace(c=second.c[1:])
    joined: SamplingPlan = jax.tree.map(lambda *parts: np.concatenate(parts), remembering(first, memory), later)
    return joined


def without_first(plan: SamplingPlan) -> SamplingPlan:
    """Returns the plan of all evaluations but the first, for a run that continues from the two states around it."""
    later: SamplingPlan = jax.tree.map(lambda part: part[1:], plan)
    return later


def remembering(plan: SamplingPlan, memory: int) -> SamplingPlan:
    """Returns the plan with weights of 0 for states and predictions that it does not look back at."""
    wider = ((0, 0), (0, memory - plan.a.shape[1]))
    return plan._replace(a=np.pad(plan.a, wider), b=np.pad(plan.b, wider))


def data_prediction(host: HostTransport, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns x̂ = (σ̂_t x_t − σ_t F)/C_t as weights of x_t and F."""
    C = host.determinant(t)
    return host.sigma_hat(t) / C, -host.sigma(t) / C


def straight_slope(transport: Transport, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns ε̂ − x̂, the slope of x/(α + σ) over σ/(α + σ), as weights of x_t and F, elementwise."""
    host = host_transport(transport)
    C = host.determinant(t)
    return -(host.alpha_hat(t) + host.sigma_hat(t)) / C, (host.alpha(t) + host.sigma(t)) / C


def velocity(transport: Transport, t: np.ndarray, w: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Returns v − w s = α' x̂ + (σ' + w/σ) ε̂ as weights of x_t and F(x_t, t, t), s = −ε̂/σ being the score.

    Args:
        transport: The transport.
        t: The times (n,).
        w: The diffusion coefficient, (n,) or one number; only where it is 0 may σ be.
    """
    host = host_transport(transport)
    of_data, of_noise = slope(transport.alpha)(t), slope(transport.sigma)(t)
    if np.any(w):
        of_noise = of_noise + w / host.sigma(t)
    C = host.determinant(t)
    return (
        (of_data * host.sigma_hat(t) - of_noise * host.alpha_hat(t)) / C,
        (of_noise * host.alpha(t) - of_data * host.sigma(t)) / C,
    )
