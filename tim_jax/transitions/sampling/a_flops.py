"""A-FloPS, arXiv 2509.00036: what is linear in the state is integrated exactly, with a rate of each image's own.

On the straight path y = x/(α + σ) over s = σ/(α + σ), which every transport's is when so scaled, the slope is
u = ε̂ − x̂. In a step to s + Δ it is u = c y + h, with

    c = ⟨δu, δy⟩/‖δy‖²,    y_r = e^z y + Δ φ₁(z) h + Δ² φ₂(z) δh/δs,    z = cΔ

of the differences δ to the last evaluation, φ₁ = (e^z − 1)/z and φ₂ = (φ₁ − 1)/z. As a correction of Euler's step:

    y_r = y + Δu + φ₂(z) [zΔu + ω (Δδu − z δy)],    ω = Δ/δs
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.transitions.sampling.jumps import euler
from tim_jax.transitions.sampling.plans import SamplingPlan, host_transport, remembering, straight_slope
from tim_jax.transitions.sampling.rules import Arrays, Rule
from tim_jax.transitions.transports import Transport

STILL = 1e-10  # share of ‖y‖² up to which ‖δy‖² is no movement that a rate can be told from
MAX_GROWTH = 2.0  # of z, beyond which a deviation would grow more than e²-fold in a step


class _Known(NamedTuple):
    """Coefficients of n evaluations, and of the one before each where there is a second axis, (n, 2).

    Attributes:
        scale: 1/(α + σ), by which states become y.
        of_state, of_F: The weights of state and prediction in the slope u.
        step: Δ (n,).
        relative: ω (n,), 0 at first.
        end: α + σ (n,) at the end of the step.
    """

    scale: np.ndarray
    of_state: np.ndarray
    of_F: np.ndarray
    step: np.ndarray
    relative: np.ndarray
    end: np.ndarray


def a_flops(transport: Transport, times: np.ndarray) -> SamplingPlan:
    """A-FloPS: one evaluation a step, exact where the slope is linear in the state. Second order."""
    host = host_transport(transport)
    total = host.alpha(times) + host.sigma(times)
    step = np.diff(host.sigma(times) / total)
    t, before = times[:-1], np.append(times[:1], times[:-2])
    of_state, of_F = straight_slope(transport, np.stack([t, before], axis=-1))
    scale = 1 / np.stack([total[:-1], np.append(total[:1], total[:-2])], axis=-1)
    relative = np.append(0.0, step[1:] / step[:-1])
    rule = Rule(_Known(scale, of_state, of_F, step, relative, total[1:]), correct=_correct)
    return remembering(euler(transport, times), 2)._replace(rule=rule)


def _correct(known: Any, states: Arrays, predictions: Arrays) -> tuple[jax.Array, jax.Array]:
    """What the image's own rate adds to the weights of Euler's step; nothing where it has none."""
    y, y_before = (known.scale[k] * states[k] for k in range(2))
    u, u_before = (known.of_state[k] * states[k] + known.of_F[k] * predictions[k] for k in range(2))
    moved = _inner(y - y_before, y - y_before)
    has_rate = (known.relative > 0) & (moved > STILL * _inner(y, y))
    z = known.step * _inner(u - u_before, y - y_before) / jnp.where(has_rate, moved, 1)
    has_rate &= z <= MAX_GROWTH
    z = jnp.where(has_rate, z, 0)
    bend = jnp.where(has_rate, phi_2(z), 0)
    turn, back = bend * known.relative * known.step, bend * known.relative * z
    of_u = jnp.stack([bend * z * known.step + turn, -turn], axis=-1)  # (B, 2)
    of_y = jnp.stack([-back, back], axis=-1)
    a = of_u * known.of_state[None] + of_y * known.scale[None]
    return known.end * a, known.end * of_u * known.of_F[None]


def phi_2(z: jax.Array) -> jax.Array:
    """Returns (e^z − 1 − z)/z², elementwise, ½ at z = 0."""
    series = jnp.polyval(jnp.array([1 / math.factorial(k + 2) for k in range(15, -1, -1)], z.dtype), z)
    apart = jnp.where(jnp.abs(z) < 1, 1, z)
    return jnp.where(jnp.abs(z) < 1, series, (jnp.expm1(apart) - apart) / apart**2)


def _inner(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns ⟨x, y⟩ (B,) of states (B, …)."""
    return (x * y).sum(tuple(range(1, x.ndim)))
