"""Jumps from one time to another, for any transport (TiM, section 3).

With C_t = σ̂_t α_t − α̂_t σ_t, a prediction F ≈ α̂_t x + σ̂_t ε at x_t = α_t x + σ_t ε gives

    x̂   = (σ̂_t x_t − σ_t F)/C_t,   ε̂ = (α_t F − α̂_t x_t)/C_t
    x_r = α_r x̂ + σ_r ε̂ = A_{t,r} x_t + B_{t,r} F
    A   = (α_r σ̂_t − σ_r α̂_t)/C_t,  B = (σ_r α_t − α_r σ_t)/C_t

Times are (B,) arrays; data, noise, states and predictions are (B, …).
"""

import jax
import jax.numpy as jnp

from tim_jax.transitions.transports import Transport


def expand(t: jax.Array, like: jax.Array) -> jax.Array:
    """Returns times (B,) as (B, 1, …, 1), which broadcast against a state (B, …)."""
    return t.reshape(t.shape + (1,) * (like.ndim - t.ndim))


def interpolate(transport: Transport, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """Returns the state x_t = α_t x + σ_t ε."""
    t = expand(t, x)
    return transport.alpha(t) * x + transport.sigma(t) * noise


def prediction_target(transport: Transport, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """Returns α̂_t x + σ̂_t ε, what F stands for: the target at r = t."""
    t = expand(t, x)
    return transport.alpha_hat(t) * x + transport.sigma_hat(t) * noise


def velocity(transport: Transport, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """Returns v_t = dx_t/dt = α'_t x + σ'_t ε along the path of a given (x, ε)."""
    v_t: jax.Array = jax.jvp(lambda t: interpolate(transport, x, noise, t), (t,), (jnp.ones_like(t),))[1]
    return v_t


def determinant(transport: Transport, t: jax.Array) -> jax.Array:
    """Returns C_t = σ̂_t α_t − α̂_t σ_t, elementwise."""
    return transport.sigma_hat(t) * transport.alpha(t) - transport.alpha_hat(t) * transport.sigma(t)


def coefficient_A(transport: Transport, t: jax.Array, r: jax.Array) -> jax.Array:
    """Returns A_{t,r}, elementwise; it is 1 at r = t."""
    numerator = transport.alpha(r) * transport.sigma_hat(t) - transport.sigma(r) * transport.alpha_hat(t)
    return numerator / determinant(transport, t)


def coefficient_B(transport: Transport, t: jax.Array, r: jax.Array) -> jax.Array:
    """Returns B_{t,r}, elementwise; it is 0 at r = t."""
    numerator = transport.sigma(r) * transport.alpha(t) - transport.alpha(r) * transport.sigma(t)
    return numerator / determinant(transport, t)


def jump(transport: Transport, x_t: jax.Array, F: jax.Array, t: jax.Array, r: jax.Array) -> jax.Array:
    """Returns x_r = A_{t,r} x_t + B_{t,r} F; r may lie on either side of t.

    Args:
        transport: The transport.
        x_t: States (B, …).
        F: Predictions (B, …) at (x_t, t, r).
        t, r: The times (B,) where the jump starts and ends.
    """
    t, r = expand(t, x_t), expand(r, x_t)
    return coefficient_A(transport, t, r) * x_t + coefficient_B(transport, t, r) * F


def data_and_noise(transport: Transport, x_t: jax.Array, F: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the data x̂ and the noise ε̂, each (B, …), that a prediction F at x_t stands for."""
    t = expand(t, x_t)
    C = determinant(transport, t)
    x_hat = (transport.sigma_hat(t) * x_t - transport.sigma(t) * F) / C
    noise_hat = (transport.alpha(t) * F - transport.alpha_hat(t) * x_t) / C
    return x_hat, noise_hat
