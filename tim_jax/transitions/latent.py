"""Paths with a latent variable: stochastic interpolants (Albergo et al., arXiv 2303.08797).

    x_t = α_t x + σ_t ε + γ_t z,   ẋ_t = α'_t x + σ'_t ε + γ'_t z,   z ~ N(0, 1)
    γ_t = c √(2 u (1 − u)),   u the share of the time domain below t,   c = `transport.gamma`

γ vanishes at both ends, so that the laws of data and noise stay, and what is learned is the velocity E[ẋ_t | x_t]
of the probability flow between them. With normal ε the path is one with other coefficients; coupled with data
(`coupling.py`) it is a new one.

Objectives see a pair (x̂, ε̂) with this state and velocity in place of (x, ε), as they see a teacher's:

    α_t x̂ + σ_t ε̂ = x_t,   α'_t x̂ + σ'_t ε̂ = ẋ_t

Every target is linear in state and velocity, and so is F at r = t, whatever the transport; the identities of flow maps
hold for any velocity. γ' has a pole at both ends, where u is kept by `EDGE` away from them.
"""

import jax
import jax.numpy as jnp

from tim_jax.transitions.jump import expand, interpolate, velocity
from tim_jax.transitions.transports import Transport
from tim_jax.types import Examples

EDGE = 1e-4  # of the share of the time domain; γ is c √(2 EDGE) at the ends
KEY = 2**32 - 3  # folded into the key of a batch


def gamma(transport: Transport, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns γ_t and γ'_t, elementwise."""
    u = jnp.clip(transport.share(t), EDGE, 1 - EDGE)
    root = jnp.sqrt(2 * u * (1 - u))
    return transport.gamma * root, transport.gamma * (1 - 2 * u) / root / (transport.T_max - transport.T_min)


def with_latent(transport: Transport, examples: Examples, t: jax.Array, key: jax.Array) -> Examples:
    """Returns examples at times t (B,) with the pair (x̂, ε̂) in place of (x, ε); z is drawn by a batch's key."""
    x, noise = examples.x, examples.noise
    z = jax.random.normal(jax.random.fold_in(key, jnp.uint32(KEY)), x.shape, x.dtype)
    size, rate = (expand(part, x) for part in gamma(transport, t))
    x_t = interpolate(transport, x, noise, t) + size * z
    v_t = velocity(transport, x, noise, t) + rate * z
    return examples._replace(**dict(zip(("x", "noise"), pair_of(transport, x_t, v_t, t), strict=True)))


def pair_of(transport: Transport, x_t: jax.Array, v_t: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the data x̂ and the noise ε̂, each (B, …), whose path has the state x_t and the velocity v_t at t."""
    t = expand(t, x_t)
    (alpha, alpha_rate), (sigma, sigma_rate) = (
        jax.jvp(f, (t,), (jnp.ones_like(t),)) for f in (transport.alpha, transport.sigma)
    )
    determinant = alpha * sigma_rate - sigma * alpha_rate
    return (sigma_rate * x_t - sigma * v_t) / determinant, (alpha * v_t - alpha_rate * x_t) / determinant
