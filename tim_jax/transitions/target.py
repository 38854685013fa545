"""The transition target (TiM, eq. 10): what F must be for x_t → x_r to be one consistent jump.

At fixed r the true flow map keeps B_{t,r}(α̂_t x + σ̂_t ε − F) constant in t along the path of (x, ε), in conditional
expectation given x_t. Solved for F, with the current network's derivative on the right:

    F* = α̂_t x + σ̂_t ε + (B/Ḃ)(α̂'_t x + σ̂'_t ε − dF⁻/dt),   Ḃ = ∂B_{t,r}/∂t

dF/dt is the total derivative along (dx_t/dt, 1, 0) of F(x_t, t, r).
"""

import jax
import jax.numpy as jnp

from tim_jax.transitions.jump import coefficient_A, coefficient_B, data_and_noise, expand, prediction_target, velocity
from tim_jax.transitions.transports import Transport


def interval_factor(transport: Transport, t: jax.Array, r: jax.Array) -> jax.Array:
    """B/Ḃ, elementwise in t and r: t − r for OT-FM, tan(t − r) for TrigFlow; 0 at r = t."""
    B, B_dot = jax.jvp(lambda t: coefficient_B(transport, t, r), (t,), (jnp.ones_like(t),))
    return B / B_dot


def transition_change(
    transport: Transport, x: jax.Array, noise: jax.Array, t: jax.Array, r: jax.Array, dF_dt: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(B/Ḃ)(α̂'_t x + σ̂'_t ε − dF/dt) of shape (B, …), and B/Ḃ of shape (B, 1, …)."""
    target_dot = jax.jvp(lambda t: prediction_target(transport, x, noise, t), (t,), (jnp.ones_like(t),))[1]
    factor = interval_factor(transport, expand(t, x), expand(r, x))
    return factor * (target_dot - dF_dt), factor


def end_target(
    transport: Transport, x_t: jax.Array, x_r: jax.Array, F_r: jax.Array, t: jax.Array, r: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(F (B, …), B/B' (B, 1, …)) for which the end x_r of a jump moves as the prediction F_r there says, B' = ∂B/∂r.

    x_t, x_r, F_r: (B, …), F_r at (x_r, r, r); t, r: (B,), r < t, since at r = t both are without meaning.
    A' x_t + B' F + B ∂F/∂r = dx_r/dr, solved for F but for its own last term: F* = F − (B/B') ∂F⁻/∂r (Lagrangian).
    B/B' is r − t for OT-FM.
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
    """F* above. x, noise, dF_dt: (B, …); t, r: (B,). base: takes the place of α̂_t x + σ̂_t ε (guided targets)."""
    base = prediction_target(transport, x, noise, t) if base is None else base
    return base + transition_change(transport, x, noise, t, r, dF_dt)[0]
