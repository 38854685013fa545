"""Transports: how data and noise mix over time, each given by four scalar functions.

    x_t = α_t x + σ_t ε        the state at time t
    F   ≈ α̂_t x + σ̂_t ε       what the network predicts

Everything else (posterior means, jumps, targets) follows in `jump.py` and `target.py` for every transport alike.
The table of transports is that of TiM (arXiv 2509.04394, appendix), with EDM for every σ_d, not only σ_d = 1.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

Scalar: TypeAlias = Callable[[jax.Array], jax.Array]  # a scalar function, elementwise

UNUSED = {
    ("transport.sigma_d",): ("transport.name is not 'edm'", lambda c: c.transport.name != "edm"),
    ("transport.prediction_clip",): (
        "transport.prediction is neither 'x' nor 'noise'",
        lambda c: c.transport.prediction not in ("x", "noise"),
    ),
    ("transport.shared_intervals",): ("transport.shared_below is 0", lambda c: c.transport.shared_below == 0),
}


@dataclasses.dataclass(frozen=True)
class Transport:
    """Four coefficient functions of time and what belongs to them.

    Attributes:
        name: The name in TRANSPORTS.
        alpha, sigma: The coefficients α_t and σ_t of the state, elementwise.
        alpha_hat, sigma_hat: The coefficients α̂_t and σ̂_t of the prediction, elementwise.
        c_noise: Maps a time to the number that the network sees.
        time_of_ratio: The inverse of the noise-to-signal ratio σ_t/α_t.
        T_min, T_max: The ends of the time domain; data are at T_min and noise is at T_max.
        sigma_d: The standard deviation of the data that EDM's coefficients assume.
        noise_std: The factor of σ_t and σ̂_t, see `with_noise_std`.
        augmented_dimensions: The dimensions that the law of the noise adds to those of the data, see `noise.py`.
        shared_below, shared_intervals: Where the network is told the same of several times, see `with_shared_times`.
        distribution, P_mean, P_std: The published distribution of t, see `times.py`.
        prediction, prediction_clip: What the output of a network stands for, see `prediction.py`.
        time_of_c_noise: The inverse of c_noise.
        gamma: The size of a third, latent variable of the path, see `latent.py`.
    """

    name: str  # ot_fm, trigflow, cosine, vp, ddpm, ve, edm
    alpha: Scalar
    sigma: Scalar
    alpha_hat: Scalar
    sigma_hat: Scalar
    c_noise: Scalar
    time_of_ratio: Scalar
    T_min: float
    T_max: float
    sigma_d: float = 1.0  # standard deviation of the data; used by edm
    noise_std: float = 1.0  # standard deviation of the noise ε, a factor of σ_t: 2 for JiT's images of 512 × 512
    augmented_dimensions: int = 0  # D of PFGM++, whose noise has heavier tails; 0: standard normal noise
    # share of the time domain below which the network is told the lower edge of the interval that a time lies in; 0:
    # every time itself
    shared_below: float = 0.0
    shared_intervals: int = 5  # how many intervals these are
    distribution: str = "logit_normal"
    P_mean: float = -0.4
    P_std: float = 1.0
    prediction: str = "F"  # what the network's output stands for: F, x (data), noise or velocity (dx_t/dt)
    prediction_clip: float = 0.05  # of x: σ_t, and of noise: α_t, by which F divides, are at least this
    time_of_c_noise: Scalar = lambda t: t
    gamma: float = 0.0  # c of γ(t) z, γ = c √(2 u (1 − u)), u the share of the time domain (`latent.py`); 0: none

    def ratio(self, t: jax.Array) -> jax.Array:
        """Returns the noise-to-signal ratio σ_t/α_t, elementwise; it grows with t for every transport."""
        return self.sigma(t) / self.alpha(t)

    def share(self, t: jax.Array) -> jax.Array:
        """Returns the share of the time domain that lies below t, in [0, 1], elementwise."""
        return (t - self.T_min) / (self.T_max - self.T_min)

    def level(self, t: jax.Array) -> jax.Array:
        """Returns the noise level 2/π arctan(σ_t/α_t) in [0, 1], elementwise, in which transports can be compared."""
        return 2 / jnp.pi * jnp.arctan2(self.sigma(t), self.alpha(t))

    def time_of_level(self, level: jax.Array) -> jax.Array:
        """Returns the time with a given noise level, elementwise: the inverse of `level` within the time domain."""
        level = jnp.clip(level, 0, 1)
        ratio = jnp.tan(jnp.pi / 2 * jnp.where(level == 1, 0.5, level))
        t = jnp.where(level == 1, self.T_max, self.time_of_ratio(ratio))
        return jnp.clip(t, self.T_min, self.T_max)


def with_noise_std(transport: Transport, noise_std: float) -> Transport:
    """Returns the transport whose noise has a standard deviation k: σ_t and σ̂_t times k, at the same times.

    x_t = α_t x + k σ_t ε is k times the state of x/k. Images of a side k times as long keep about as much of what can
    be seen at every t if their noise grows with it (simple diffusion, arXiv 2301.11093; JiT, arXiv 2511.13720).
    """
    return dataclasses.replace(
        transport,
        sigma=lambda t: noise_std * transport.sigma(t),
        sigma_hat=lambda t: noise_std * transport.sigma_hat(t),
        time_of_ratio=lambda ratio: transport.time_of_ratio(ratio / noise_std),
        noise_std=noise_std,
    )


def with_shared_times(transport: Transport, below: float, intervals: int) -> Transport:
    """Returns the transport whose network is told c_noise of an edge in place of a time near the data (E-TSDM).

    With u the share of the time domain below t, times with u < `below` lie in so many equal intervals, and each has the
    number of its lower edge. Within one the network does not change with the time, where the slope of a prediction of
    noise would grow without limit as t → 0 (arXiv 2306.11251, with the lowest tenth of the time in 5 intervals).
    States and coefficients keep the time itself.
    """
    width = below * (transport.T_max - transport.T_min) / intervals

    def told(t: jax.Array) -> jax.Array:
        edge = transport.T_min + width * jnp.floor((t - transport.T_min) / width)
        return jnp.where(transport.share(t) < below, edge, t)

    return dataclasses.replace(
        transport, c_noise=lambda t: transport.c_noise(told(t)), shared_below=below, shared_intervals=intervals
    )


def ot_fm() -> Transport:
    """Returns OT-FM: x_t = (1 − t) x + t ε, F ≈ ε − x, t in [0, 1]."""
    return Transport(
        name="ot_fm",
        alpha=lambda t: 1 - t,
        sigma=lambda t: t,
        alpha_hat=lambda t: -jnp.ones_like(t),
        sigma_hat=jnp.ones_like,
        c_noise=lambda t: t,
        time_of_ratio=lambda ratio: jax.nn.sigmoid(jnp.log(ratio)),
        T_min=0.0,
        T_max=1.0,
    )


def trigflow() -> Transport:
    """Returns TrigFlow: x_t = cos t x + sin t ε, F ≈ cos t ε − sin t x, t in [0, 1.57]."""
    return Transport(
        name="trigflow",
        alpha=jnp.cos,
        sigma=jnp.sin,
        alpha_hat=lambda t: -jnp.sin(t),
        sigma_hat=jnp.cos,
        c_noise=lambda t: t,
        time_of_ratio=jnp.arctan,
        T_min=0.0,
        T_max=1.57,
        distribution="log_normal",
        P_mean=-1.0,
        P_std=1.6,
    )


def cosine() -> Transport:
    """Returns the cosine transport: x_t = cos(πt/2) x + sin(πt/2) ε, F ≈ ε − x, t in [0, 1]."""
    half_pi = math.pi / 2
    return Transport(
        name="cosine",
        alpha=lambda t: jnp.sin(half_pi * (1 - t)),  # exactly 0 at t = 1
        sigma=lambda t: jnp.sin(half_pi * t),
        alpha_hat=lambda t: -jnp.ones_like(t),
        sigma_hat=jnp.ones_like,
        c_noise=lambda t: t,
        time_of_ratio=lambda ratio: jnp.arctan(ratio) / half_pi,
        T_min=0.0,
        T_max=1.0,
    )


def vp(beta_min: float = 0.1, beta_max: float = 20.0, steps: int = 1000) -> Transport:
    """Returns VP: α = exp(−½∫β), σ = √(1 − α²), F ≈ ε, t in [1e-5, 1].

    Args:
        beta_min, beta_max: The values between which β grows linearly.
        steps: The number of times of the discrete process; the network sees c_noise = (steps − 1) t.
    """
    slope = beta_max - beta_min

    def integral(t: jax.Array) -> jax.Array:
        return 0.5 * slope * t**2 + beta_min * t

    def time_of_ratio(ratio: jax.Array) -> jax.Array:
        # ∫β = ln(1 + ratio²), solved for t in the form that does not cancel for small ratios.
        log_term = jnp.log1p(ratio**2)
        return 2 * log_term / (beta_min + jnp.sqrt(beta_min**2 + 2 * slope * log_term))

    return Transport(
        name="vp",
        alpha=lambda t: jnp.exp(-0.5 * integral(t)),
        sigma=lambda t: jnp.sqrt(-jnp.expm1(-integral(t))),
        alpha_hat=jnp.zeros_like,
        sigma_hat=jnp.ones_like,
        c_noise=lambda t: (steps - 1) * t,
        time_of_c_noise=lambda c: c / (steps - 1),
        time_of_ratio=time_of_ratio,
        T_min=1e-5,
        T_max=1.0,
        distribution="uniform",
    )


# −ln ᾱ = −Σ ln(1 − β_j), j = 0 … i, of the discrete process with β from 1e-4 to 0.02 in 1000 steps, as a polynomial in
# t = (i + 1)/1000 without constant term, the highest power first: its values at these times to 2e-10 of them.
DDPM = (8.09806302e-06, 6.58714345e-04, 6.61458186e-02, 9.96085683e00, 9.00440774e-02, 0.0)


def ddpm() -> Transport:
    """Returns DDPM's discrete process (arXiv 2006.11239), as DiT has it, at all times between: F ≈ ε, t in [1e-5, 1].

    At t = (i + 1)/1000 the coefficients are those of step i, and the network sees c_noise = i. In `vp`, the limit of
    more and more steps, α is off by up to 2e-3 of 1, and σ at step 0 by 0.01, which is all of it.
    """
    *_, b, a, _ = DDPM

    def integral(t: jax.Array) -> jax.Array:
        return functools.reduce(
            lambda value, coefficient: value * t + coefficient, DDPM[1:], DDPM[0] * jnp.ones_like(t)
        )

    def time_of_ratio(ratio: jax.Array) -> jax.Array:
        log_term = jnp.log1p(ratio**2)
        t = 2 * log_term / (a + jnp.sqrt(a**2 + 4 * b * log_term))  # by the two lowest powers, then by Newton's method
        for _ in range(3):
            value, slope = jax.jvp(integral, (t,), (jnp.ones_like(t),))
            t = t - (value - log_term) / slope
        return t

    return Transport(
        name="ddpm",
        alpha=lambda t: jnp.exp(-0.5 * integral(t)),
        sigma=lambda t: jnp.sqrt(-jnp.expm1(-integral(t))),
        alpha_hat=jnp.zeros_like,
        sigma_hat=jnp.ones_like,
        c_noise=lambda t: 1000 * t - 1,
        time_of_c_noise=lambda c: (c + 1) / 1000,
        time_of_ratio=time_of_ratio,
        T_min=1e-5,
        T_max=1.0,
        distribution="uniform",
    )


def ve() -> Transport:
    """Returns VE: x_t = x + t ε, F ≈ −ε, t in [0.02, 100]."""
    return Transport(
        name="ve",
        alpha=jnp.ones_like,
        sigma=lambda t: t,
        alpha_hat=jnp.zeros_like,
        sigma_hat=lambda t: -jnp.ones_like(t),
        c_noise=lambda t: jnp.log(t / 2),
        time_of_c_noise=lambda c: 2 * jnp.exp(c),
        time_of_ratio=lambda ratio: ratio,
        T_min=0.02,
        T_max=100.0,
        distribution="log_uniform",
    )


def edm(sigma_d: float = 0.5) -> Transport:
    """Returns EDM: x_t = (x + t ε)/s, F ≈ (t x/σ_d − σ_d ε)/s with s = √(t² + σ_d²), t in [0.01, 80], for σ_d > 0."""

    def s(t: jax.Array) -> jax.Array:
        return jnp.sqrt(t**2 + sigma_d**2)

    return Transport(
        name="edm",
        alpha=lambda t: 1 / s(t),
        sigma=lambda t: t / s(t),
        alpha_hat=lambda t: t / (sigma_d * s(t)),
        sigma_hat=lambda t: -sigma_d / s(t),
        c_noise=lambda t: jnp.log(t) / 4,
        time_of_c_noise=lambda c: jnp.exp(4 * c),
        time_of_ratio=lambda ratio: ratio,
        T_min=0.01,
        T_max=80.0,
        sigma_d=sigma_d,
        distribution="log_normal",
        P_mean=-1.2,
        P_std=1.2,
    )


TRANSPORTS: dict[str, Callable[..., Transport]] = {
    "ot_fm": ot_fm,
    "trigflow": trigflow,
    "cosine": cosine,
    "vp": vp,
    "ddpm": ddpm,
    "ve": ve,
    "edm": edm,
}
