"""Jumps from one time to another, for any transport (TiM, section 3).

With C_t = σ̂_t α_t − α̂_t σ_t, a prediction F ≈ α̂_t x + σ̂_t ε at x_t = α_t x + σ_t ε gives

    x̂   = (σ̂_t x_t − σ_t F)/C_t,   ε̂ = (α_t F − α̂_t x_t)/C_t
    x_r = α_r x̂ + σ_r ε̂ = A_{t,r} x_t + B_{t,r} F
    A   = (α_r σ̂_t − σ_r α̂_t)/C_t,  B = (σ_r α_t − α_r σ_t)/C_t

Times are (B,) arrays, states and predictions (B, …).
"""

import jax
import jax.numpy as jnp

from tim_jax.transitions.transports import Transport


def expand(t: jax.Array, like: jax.Array) -> jax.Array:
    """Times (B,) as (B, 1, …, 1), to go with a state (B, …)."""
    return t.reshape(t.shape + (1,) * (like.ndim - t.ndim))


def interpolate(transport: Transport, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """x_t = α_t x + σ_t ε. x, noise: (B, …); t: (B,)."""
    t = expand(t, x)
    return transport.alpha(t) * x + transport.sigma(t) * noise


def prediction_target(transport: Transport, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """α̂_t x + σ̂_t ε, what F stands for: the target at r = t. x, noise: (B, …); t: (B,)."""
    t = expand(t, x)
    return transport.alpha_hat(t) * x + transport.sigma_hat(t) * noise


def velocity(transport: Transport, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """v_t = dx_t/dt = α'_t x + σ'_t ε along the path of a given (x, ε)."""
    return jax.jvp(lambda t: interpolate(transport, x, noise, t), (t,), (jnp.ones_like(t),))[1]


def determinant(transport: Transport, t: jax.Array) -> jax.Array:
    """C_t = σ̂_t α_t − α̂_t σ_t."""
    return transport.sigma_hat(t) * transport.alpha(t) - transport.alpha_hat(t) * transport.sigma(t)


def coefficient_A(transport: Transport, t: jax.Array, r: jax.Array) -> jax.Array:
    """A_{t,r}, elementwise; 1 at r = t."""
    numerator = transport.alpha(r) * transport.sigma_hat(t) - transport.sigma(r) * transport.alpha_hat(t)
    return numerator / determinant(transport, t)


def coefficient_B(transport: Transport, t: jax.Array, r: jax.Array) -> jax.Array:
    """B_{t,r}, elementwise; 0 at r = t."""
    numerator = transport.sigma(r) * transport.alpha(t) - transport.alpha(r) * transport.sigma(t)
    return numerator / determinant(transport, t)


def jump(transport: Transport, x_t: jax.Array, F: jax.Array, t: jax.Array, r: jax.Array) -> jax.Array:
    """x_r = A_{t,r} x_t + B_{t,r} F, also upwards (r > t). x_t, F: (B, …); t, r: (B,)."""
    t, r = expand(t, x_t), expand(r, x_t)
    return coefficient_A(transport, t, r) * x_t + coefficient_B(transport, t, r) * F


def data_and_noise(transport: Transport, x_t: jax.Array, F: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(x̂, ε̂) that a prediction F at x_t stands for."""
    t = expand(t, x_t)
    C = determinant(transport, t)
    x_hat = (transport.sigma_hat(t) * x_t - transport.sigma(t) * F) / C
    noise_hat = (transport.alpha(t) * F - transport.alpha_hat(t) * x_t) / C
    return x_hat, noise_hat
