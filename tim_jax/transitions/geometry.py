"""The geometry of paths from noise to data: how straight they are, in coordinates in which transports can be compared.

With y = x_t/(α_t + σ_t) and u = σ_t/(α_t + σ_t) every transport is OT-FM, y = (1 − u) x + u ε, and the slope of a flow
is dy/du = ε̂ − x̂. A path is straight where x̂ and ε̂ do not change along it. Of a path from u = 1 to u = 0,

    straightness  S = ∫ E |dy/du − (y₁ − y₀)|² du        (rectified flow, arXiv 2209.03003)
    deviation     |y_u − c_u|, c_u the nearest point to y_u of the line through y₁ and y₀        (arXiv 2405.11326)

both of which are 0 for a straight one. They are means over numbers here: S is divided by D, and a deviation by √D.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.transitions.derivative import Net, query
from tim_jax.transitions.jump import data_and_noise, expand
from tim_jax.transitions.sampling.plans import host_transport, on_host
from tim_jax.transitions.transports import Transport
from tim_jax.types import PyTree


def share_of_noise(transport: Transport, t: Any) -> np.ndarray:
    """Returns u = σ/(α + σ) in float64 at times of any shape."""
    return on_host(lambda t: transport.sigma(t) / (transport.alpha(t) + transport.sigma(t)))(t)


def straight_state(transport: Transport, x_t: jax.Array, t: jax.Array) -> jax.Array:
    """Returns y (B, …) of states x_t at times t (B,)."""
    t = expand(t, x_t)
    return x_t / (transport.alpha(t) + transport.sigma(t))


def straight_slope(transport: Transport, x_t: jax.Array, F: jax.Array, t: jax.Array) -> jax.Array:
    """Returns dy/du = ε̂ − x̂ (B, …) of predictions F (B, …) at r = t."""
    x_hat, noise_hat = data_and_noise(transport, x_t, F, t)
    return noise_hat - x_hat


def bend(y: np.ndarray, slopes: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Returns |dy/du − (y₁ − y₀)|²/D along paths, whose integral over u is their straightness.

    Args:
        y: States (n, B, …) along paths, in the coordinates above.
        slopes: dy/du (n, B, …) there.
        u: Where they are (n,), from noise to data.

    Returns:
        (n, B).
    """
    chord = (y[-1] - y[0]) / (u[-1] - u[0])
    found: np.ndarray = np.square(slopes - chord).reshape(*y.shape[:2], -1).mean(axis=2)
    return found


def straightness(y: np.ndarray, slopes: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Returns S/D (B,) of paths by the trapezoid rule; the arguments are those of `bend`."""
    found: np.ndarray = np.trapezoid(bend(y, slopes, u)[::-1], u[::-1], axis=0)
    return found


def deviation(y: np.ndarray) -> np.ndarray:
    """Returns the distances (n, B) of the states (n, B, …) of paths from their chords, which end at the first and last.

    Those of the ends are 0. They are divided by √D.
    """
    flat = y.reshape(*y.shape[:2], -1)
    from_first, chord = flat - flat[0], flat[-1] - flat[0]
    length = np.maximum(np.square(chord).sum(axis=1, keepdims=True), np.finfo(flat.dtype).tiny)
    along = (from_first * chord).sum(axis=2, keepdims=True) / length
    found: np.ndarray = np.sqrt(np.square(from_first - along * chord).mean(axis=2))
    return found


def data_of_jump(transport: Transport, x_t: jax.Array, F: jax.Array, t: jax.Array) -> jax.Array:
    """Returns the x̂ (B, …) of a prediction F(x_t, t, r): at r = t the posterior mean, at r = T_min the jump to data.

    In between it is the end of the line on which f_{t→r}(x_t) lies, which is that of a chord in the coordinates above.
    """
    return data_and_noise(transport, x_t, F, t)[0]


def times_of_levels(transport: Transport, levels: np.ndarray) -> np.ndarray:
    """Returns the times in float64 of noise levels (n,) in [0, 1], those of the ends being T_min and T_max."""
    inner = (levels > 0) & (levels < 1)
    ratio = np.tan(np.pi / 2 * np.where(inner, levels, 0.5))
    found = np.where(inner, host_transport(transport).time_of_ratio(ratio), np.where(levels > 0.5, np.inf, -np.inf))
    return np.clip(found, transport.T_min, transport.T_max)


def walk(
    net: Net, transport: Transport, noise: jax.Array, condition: PyTree, times: np.ndarray
) -> tuple[jax.Array, jax.Array]:
    """Follows the flow of F at r = t by Heun's method in u.

    Args:
        net: The network.
        transport: The transport.
        noise: ε (B, …), of which the paths begin at σ ε.
        condition: A pytree of (B, …) arrays.
        times: (n,), falling from T_max.

    Returns:
        The states y and the slopes dy/du at all times, each (n, B, …).
    """
    host = host_transport(transport)
    scales = host.alpha(times) + host.sigma(times)

    def slope(y: jax.Array, t: jax.Array, scale: jax.Array) -> jax.Array:
        t_B, x_t = jnp.full(len(y), t), scale * y
        F = net((query(transport, x_t, t_B, t_B, condition),))[0].F.astype(y.dtype)
        return straight_slope(transport, x_t, F, t_B)

    def step(carry: tuple[jax.Array, jax.Array], node: tuple[jax.Array, ...]) -> tuple[Any, Any]:
        (y, first), (t, scale, du) = carry, node
        last = slope(y + du * first, t, scale)
        y = y + du / 2 * (first + last)
        return (y, found := slope(y, t, scale)), (y, found)

    t, scale, u = (jnp.asarray(part, noise.dtype) for part in (times, scales, share_of_noise(transport, times)))
    y = u[0] * noise
    start = y, slope(y, t[0], scale[0])
    _, found = jax.lax.scan(step, start, (t[1:], scale[1:], jnp.diff(u)))
    y, slopes = (jnp.concatenate([first[None], later]) for first, later in zip(start, found, strict=True))
    return y, slopes


def data_along(
    net: Net, transport: Transport, y: jax.Array, condition: PyTree, times: np.ndarray, ends: np.ndarray
) -> jax.Array:
    """Returns x̂ (n, B, …) of F(x_t, t, r) at the states y (n, B, …) of paths; times t, ends r: (n,)."""
    host = host_transport(transport)
    scale = host.alpha(times) + host.sigma(times)

    def of_time(node: tuple[jax.Array, ...]) -> jax.Array:
        y, t, r, scale = node
        t, r = (jnp.full(len(y), time) for time in (t, r))
        F = net((query(transport, scale * y, t, r, condition),))[0].F.astype(y.dtype)
        return data_of_jump(transport, scale * y, F, t)

    found: jax.Array = jax.lax.map(of_time, (y, *(jnp.asarray(part, y.dtype) for part in (times, ends, scale))))
    return found
