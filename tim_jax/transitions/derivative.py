"""F and its total derivative dF/dt along (dx_t/dt, 1, 0), by forward mode or by central difference, and ∂F/∂r.

All take the rows that need a derivative together with the rows that do not ("plain"): a network maps over groups of
rows inside one scan over its layers, so that each layer's parameters are read once for all of them, and no tangent is
ever computed for plain rows.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tim_jax.transitions.jump import expand, interpolate, velocity
from tim_jax.transitions.transports import Transport
from tim_jax.types import Output, Query, TangentQuery

Net = Callable[[tuple[Query, ...]], tuple[Output, ...]]


def query(
    transport: Transport, x_t: jax.Array, t: jax.Array, r: jax.Array, condition: Any, key: jax.Array | None = None
) -> Query:
    """The one place where times become what the network sees, c_noise(t) and c_noise(r)."""
    return Query(x_t, transport.c_noise(t), transport.c_noise(r), condition, key)


def jvp(
    net: Net,
    transport: Transport,
    x: jax.Array,
    noise: jax.Array,
    t: jax.Array,
    r: jax.Array,
    condition: Any,
    key: jax.Array | None = None,
    plain: tuple[Query, ...] = (),
) -> tuple[tuple[Output, ...], Output, jax.Array]:
    """Outputs of the plain groups, the output of these rows, and dF/dt (B, …) exactly, in one pass of the network."""

    def forward(x_t, t):
        moving = TangentQuery(*query(transport, x_t, t, r, condition, key))
        *plain_outputs, output = net((*plain, moving))
        return output.F, (tuple(plain_outputs), output)

    x_t = interpolate(transport, x, noise, t)
    v_t = velocity(transport, x, noise, t)
    _, dF_dt, (plain_outputs, output) = jax.jvp(forward, (x_t, t), (v_t, jnp.ones_like(t)), has_aux=True)
    return plain_outputs, output, dF_dt


def jvp_in_r(
    net: Net,
    transport: Transport,
    x_t: jax.Array,
    t: jax.Array,
    r: jax.Array,
    *asked: Any,
    plain: tuple[Query, ...] = (),
) -> tuple[tuple[Output, ...], Output, jax.Array]:
    """As `jvp`, with ∂F/∂r, the derivative in the time where a jump ends. asked: condition and keys."""

    def forward(r):
        *plain_outputs, output = net((*plain, TangentQuery(*query(transport, x_t, t, r, *asked))))
        return output.F, (tuple(plain_outputs), output)

    _, dF_dr, (plain_outputs, output) = jax.jvp(forward, (r,), (jnp.ones_like(r),), has_aux=True)
    return plain_outputs, output, dF_dr


def central_difference(
    net: Net,
    transport: Transport,
    x: jax.Array,
    noise: jax.Array,
    t: jax.Array,
    r: jax.Array,
    condition: Any,
    key: jax.Array | None = None,
    epsilon: float = 0.005,
) -> jax.Array:
    """dF/dt (B, …) from F at t ± ε, x_{t±ε} rebuilt from the same (x, ε); error O(ε²).

    Within ε of an end of the time domain the outer point is the end itself (error O(ε) there), so that the network is
    never asked about times that do not exist. Give a float32 network: in bfloat16 the quotient divides rounding noise
    by ε.
    """
    above = jnp.minimum(t + epsilon, transport.T_max)
    below = jnp.maximum(t - epsilon, transport.T_min)
    outputs = net(
        tuple(query(transport, interpolate(transport, x, noise, s), s, r, condition, key) for s in (above, below))
    )
    return (outputs[0].F - outputs[1].F) / expand(above - below, x)
