"""The transition target (TiM, eq. 10): what F must be for x_t → x_r to be one consistent jump.

At fixed r the true flow map keeps B_{t,r}(α̂_t x + σ̂_t ε − F) constant in t along the path of (x, ε), in conditional
expectation given x_t. Solved for F, with the current network's derivative on the right:

    F* = α̂_t x + σ̂_t ε + (B/Ḃ)(α̂'_t x + σ̂'_t ε − dF⁻/dt),   Ḃ = ∂B_{t,r}/∂t

dF/dt is the total derivative of F(x_t, t, r) along (dx_t/dt, 1, 0), and F⁻ is F without gradient.
"""

import jax
import jax.numpy as jnp

from tim_jax.transitions.jump import coefficient_A, coefficient_B, data_and_noise, expand, prediction_target, velocity
from tim_jax.transitions.prediction import target
from tim_jax.transitions.transports import Transport


def interval_factor(transport: Transport, t: jax.Array, r: jax.Array) -> jax.Array:
    """Returns B/Ḃ, elementwise in t and r: t − r for OT-FM, tan(t − r) for TrigFlow, 0 at r = t for all."""
    B: jax.Array
    B_dot: jax.Array
    B, B_dot = jax.jvp(lambda t: coefficient_B(transport, t, r), (t,), (jnp.ones_like(t),))
    return B / B_dot


def transition_change(
    transport: Transport, x: jax.Array, noise: jax.Array, t: jax.Array, r: jax.Array, dF_dt: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns what the transition target adds to the target at r = t.

    Args:
        transport: The transport.
        x, noise: Data and noise (B, …) of the path.
        t, r: The times (B,) where the jump starts and ends.
        dF_dt: The network's total derivative (B, …) along the path.

    Returns:
        The change (B/Ḃ)(α̂'_t x + σ̂'_t ε − dF/dt) of shape (B, …), and the factor B/Ḃ of shape (B, 1, …).
    """
    target_dot = jax.jvp(lambda t: prediction_target(transport, x, noise, t), (t,), (jnp.ones_like(t),))[1]
    factor = interval_factor(transport, expand(t, x), expand(r, x))
    return factor * (target_dot - dF_dt), factor


def end_target(
    transport: Transport, x_t: jax.Array, x_r: jax.Array, F_r: jax.Array, t: jax.Array, r: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the F for which the end x_r of a jump moves with the velocity that a prediction F_r has there.

    From A' x_t + B' F + B ∂F/∂r = dx_r/dr, with A' = ∂A/∂r and B' = ∂B/∂r, follows the Lagrangian target
    F* = (dx_r/dr − A' x_t)/B' − (B/B') ∂F⁻/∂r. This function computes all of it but the last derivative.

    Args:
        transport: The transport.
        x_t: States (B, …) where the jump starts.
        x_r: States (B, …) where it ends.
        F_r: Predictions (B, …) at (x_r, r, r).
        t, r: The times (B,) of start and end, r < t: at r = t the outputs have no meaning.

    Returns:
        (dx_r/dr − A' x_t)/B' of shape (B, …), and B/B' of shape (B, 1, …), which is r − t for OT-FM.
    """
    v_r = velocity(transport, *data_and_noise(transport, x_r, F_r, r), r)
    t, r = expand(t, x_t), expand(r, x_t)
    one = (jnp.ones_like(r),)
    A_dot = jax.jvp(lambda r: coefficient_A(transport, t, r), (r,), one)[1]
    B, B_dot = jax.jvp(lambda r: coefficient_B(transport, t, r), (r,), one)
    return (v_r - A_dot * x_t) / B_dot, B / B_dot


def transition_target(
    transport: Transport,
    x: jax.Array,
    noise: jax.Array,
    t: jax.Array,
    r: jax.Array,
    dF_dt: jax.Array,
    base: jax.Array | None = None,
) -> jax.Array:
    """Returns the transition target F* (B, …).

    Args:
        transport: The transport.
        x, noise: Data and noise (B, …) of the path.
        t, r: The times (B,) where the jump starts and ends.
        dF_dt: The network's total derivative (B, …) along the path.
        base: Takes the place of α̂_t x + σ̂_t ε, for guided targets (B, …).
    """
    base = target(transport, x, noise, t) if base is None else base
    return base + transition_change(transport, x, noise, t, r, dF_dt)[0]
