"""What a network's output N stands for: F itself, the data x̂, the noise ε̂ or the velocity v = dx_t/dt.

Whatever it is, F = c_skip(t) x_t + c_out(t) N, and jumps, targets, guidance and samplers are those of F. With C_t of
`jump.py` and W_t = σ'_t α_t − α'_t σ_t,

    x         F = (σ̂_t x_t − C_t x̂)/max(σ_t, clip)                             (JiT, arXiv 2511.13720)
    noise     F = (α̂_t x_t + C_t ε̂)/max(α_t, clip)
    velocity  F = ((σ'_t α̂_t − α'_t σ̂_t) x_t + C_t v)/W_t

At r ≠ t an output stands for the same as F(x_t, t, r) does: for OT-FM x̂ = x_t − t F, F being the average velocity
(pixel MeanFlow, arXiv 2601.22158). The clip keeps the errors of x̂ and ε̂ from growing without bound where σ or α vanish.
Where it acts the true x makes of F the share σ_t/clip of α̂_t x + σ̂_t ε, and that is what is learned (`target`), so that
N remains the mean of x, or of ε. Then the network's steps are that much shorter: as published.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from tim_jax.transitions import jump
from tim_jax.transitions.jump import determinant, expand, prediction_target
from tim_jax.transitions.transports import Scalar, Transport
from tim_jax.types import Output, Query

Coefficients: TypeAlias = tuple[jax.Array, jax.Array]  # c_skip and c_out


def of_F(transport: Transport, t: jax.Array) -> Coefficients:
    """Returns the c_skip and c_out of F itself, elementwise."""
    return jnp.zeros_like(t), jnp.ones_like(t)


def of_data(transport: Transport, t: jax.Array) -> Coefficients:
    """Returns the c_skip and c_out of x̂, elementwise."""
    sigma = jnp.maximum(transport.sigma(t), transport.prediction_clip)
    return transport.sigma_hat(t) / sigma, -determinant(transport, t) / sigma


def of_noise(transport: Transport, t: jax.Array) -> Coefficients:
    """Returns the c_skip and c_out of ε̂, elementwise."""
    alpha = jnp.maximum(transport.alpha(t), transport.prediction_clip)
    return transport.alpha_hat(t) / alpha, determinant(transport, t) / alpha


def of_velocity(transport: Transport, t: jax.Array) -> Coefficients:
    """Returns the c_skip and c_out of v, elementwise."""
    one = jnp.ones_like(t)
    alpha, alpha_dot = jax.jvp(transport.alpha, (t,), (one,))
    sigma, sigma_dot = jax.jvp(transport.sigma, (t,), (one,))
    W = sigma_dot * alpha - alpha_dot * sigma
    skip = sigma_dot * transport.alpha_hat(t) - alpha_dot * transport.sigma_hat(t)
    return skip / W, determinant(transport, t) / W


PREDICTIONS: dict[str, Callable[[Transport, jax.Array], Coefficients]] = {
    "F": of_F,
    "x": of_data,
    "noise": of_noise,
    "velocity": of_velocity,
}


def clipped(transport: Transport) -> Scalar | None:
    """Returns what F divides by where the output stands for x̂ or ε̂: σ_t or α_t. None where nothing is clipped."""
    return {"x": transport.sigma, "noise": transport.alpha}.get(transport.prediction)


def check(transport: Transport) -> None:
    """Raises ValueError, naming key and value, for outputs that do not give F."""
    prediction, clip = transport.prediction, transport.prediction_clip
    if prediction not in PREDICTIONS:
        raise ValueError(f"transport.prediction is {prediction!r}; it must be one of {', '.join(PREDICTIONS)}")
    if clip < 0:
        raise ValueError(f"transport.prediction_clip is {clip}; it must be at least 0")
    if prediction == "F":
        return
    divisor, name = clipped(transport), transport.name
    with jax.ensure_compile_time_eval():  # losses are checked where they are traced
        ends = jnp.array([transport.T_min, transport.T_max])
        vanishes = divisor is not None and bool((divisor(ends) <= 0).any())
    if clip == 0 and vanishes:
        raise ValueError(
            f"transport.prediction_clip is {clip}; it must be above 0 for {prediction!r} with {name}, or F divides by 0"
        )
    if not tells_times(transport):
        raise ValueError(
            f"transport.prediction is {prediction!r}; it must be 'F' for {name}, whose time_of_c_noise does not invert "
            "its c_noise"
        )


def tells_times(transport: Transport) -> bool:
    """Whether `time_of_c_noise` inverts c_noise, so that a Query says its times."""
    with jax.ensure_compile_time_eval():
        ends = jnp.array([transport.T_min, transport.T_max])
        inverts = bool(jnp.allclose(transport.time_of_c_noise(transport.c_noise(ends)), ends, 1e-4, 1e-6))
    return inverts and not transport.shared_below


def share(transport: Transport, t: jax.Array) -> jax.Array:
    """Returns the share of α̂_t x + σ̂_t ε that F learns, elementwise: 1 where the clip does not act."""
    divisor, clip = clipped(transport), transport.prediction_clip
    return jnp.minimum(divisor(t) / clip, 1) if divisor and clip else jnp.ones_like(t)


def to_F(transport: Transport, x_t: jax.Array, output: jax.Array, t: jax.Array) -> jax.Array:
    """Returns the F (B, …) that an output (B, …) at x_t stands for, at times t (B,)."""
    if transport.prediction == "F":
        return output
    skip, out = PREDICTIONS[transport.prediction](transport, expand(t, x_t))
    return skip * x_t + out * output


def from_F(transport: Transport, x_t: jax.Array, F: jax.Array, t: jax.Array) -> jax.Array:
    """Returns the output (B, …) that stands for F (B, …): the inverse of `to_F`."""
    skip, out = PREDICTIONS[transport.prediction](transport, expand(t, x_t))
    return (F - skip * x_t) / out


def target(transport: Transport, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """Returns what F learns at r = t: α̂_t x + σ̂_t ε, or, where the clip acts, what the true x or ε makes of F."""
    return share(transport, expand(t, x)) * prediction_target(transport, x, noise, t)


def data_and_noise(transport: Transport, x_t: jax.Array, F: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the data x̂ and the noise ε̂, each (B, …), that an output stands for of which `to_F` made F.

    Where the output is one of them, it is that one itself, and the clip acts on the other alone: F is short there.
    """
    if clipped(transport) is None:
        return jump.data_and_noise(transport, x_t, F, t)
    output, t, clip = from_F(transport, x_t, F, t), expand(t, x_t), transport.prediction_clip
    alpha, sigma = transport.alpha(t), transport.sigma(t)
    if transport.prediction == "x":
        return output, (x_t - alpha * output) / jnp.maximum(sigma, clip)
    return (x_t - sigma * output) / jnp.maximum(alpha, clip), output


def in_F(transport: Transport, query: Query, output: Output) -> Output:
    """Returns a network's Output for a Query with the F, and the velocity head, that it stands for."""
    t = transport.time_of_c_noise(query.t)
    heads = output.heads
    if heads and "velocity" in heads:
        heads = heads | {"velocity": to_F(transport, query.x_t, heads["velocity"], t)}
    return output._replace(F=to_F(transport, query.x_t, output.F, t), heads=heads)
