"""The derivatives of F: dF/dt along (dx_t/dt, 1, 0), by forward mode or by central difference, and ∂F/∂r.

The forward-mode functions take the examples that need a derivative (off the diagonal, r ≠ t) together with queries that
do not (`diagonal`, r = t): a network maps over groups of examples inside one scan over its layers, so that each layer's
parameters are read once for all of them, and no tangent is ever computed for the queries on the diagonal.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from tim_jax.transitions.jump import expand, interpolate, velocity
from tim_jax.transitions.transports import Transport
from tim_jax.types import Output, PyTree, Query, TangentQuery

Net: TypeAlias = Callable[..., tuple[Output, ...]]
"""A network as objectives and samplers call it: a tuple of Queries, groups of examples, in, an Output for each.

With taps=(2, 4) the Outputs have the states after these blocks, counted from 1, as well.
"""


class Path(NamedTuple):
    """The paths along which dF/dt is taken: the arguments of `jvp` and `central_difference` after the network."""

    transport: Transport
    x: jax.Array
    noise: jax.Array
    t: jax.Array
    r: jax.Array
    condition: PyTree
    key: jax.Array | None = None


def query(
    transport: Transport, x_t: jax.Array, t: jax.Array, r: jax.Array, condition: PyTree, key: jax.Array | None = None
) -> Query:
    """Returns a Query at times t, r (B,): the one place where times become c_noise(t) and c_noise(r)."""
    return Query(x_t, transport.c_noise(t), transport.c_noise(r), condition, key)


def jvp(
    net: Net,
    transport: Transport,
    x: jax.Array,
    noise: jax.Array,
    t: jax.Array,
    r: jax.Array,
    condition: PyTree,
    key: jax.Array | None = None,
    diagonal: tuple[Query, ...] = (),
) -> tuple[tuple[Output, ...], Output, jax.Array]:
    """Evaluates F and its exact derivative dF/dt in one pass of the network.

    Args:
        net: The network.
        transport: The transport.
        x, noise: Data and noise (B, …), which give the state x_t and its velocity.
        t, r: The times (B,) where the jumps start and end.
        condition: A pytree of (B, …) arrays.
        key: Random keys (B,) for dropout, or None.
        diagonal: Further queries, which get no tangent.

    Returns:
        The outputs of the `diagonal` queries, the output at (x_t, t, r), and dF/dt (B, …) there.
    """

    def forward(x_t: jax.Array, t: jax.Array) -> tuple[jax.Array, tuple[tuple[Output, ...], Output]]:
        with_tangent = TangentQuery(*query(transport, x_t, t, r, condition, key))
        *diagonal_outputs, output = net((*diagonal, with_tangent))
        return output.F, (tuple(diagonal_outputs), output)

    x_t = interpolate(transport, x, noise, t)
    v_t = velocity(transport, x, noise, t)
    _, dF_dt, (diagonal_outputs, output) = jax.jvp(forward, (x_t, t), (v_t, jnp.ones_like(t)), has_aux=True)
    return diagonal_outputs, output, dF_dt


def jvp_in_r(
    net: Net,
    transport: Transport,
    x_t: jax.Array,
    t: jax.Array,
    r: jax.Array,
    condition: PyTree,
    key: jax.Array | None = None,
    diagonal: tuple[Query, ...] = (),
) -> tuple[tuple[Output, ...], Output, jax.Array]:
    """Evaluates F and ∂F/∂r, its derivative in the time where a jump ends, in one pass of the network.

    Arguments and returns are those of `jvp`, with the state x_t (B, …) in place of data and noise.
    """

    def forward(r: jax.Array) -> tuple[jax.Array, tuple[tuple[Output, ...], Output]]:
        *diagonal_outputs, output = net((*diagonal, TangentQuery(*query(transport, x_t, t, r, condition, key))))
        return output.F, (tuple(diagonal_outputs), output)

    _, dF_dr, (diagonal_outputs, output) = jax.jvp(forward, (r,), (jnp.ones_like(r),), has_aux=True)
    return diagonal_outputs, output, dF_dr


def central_difference(
    net: Net,
    transport: Transport,
    x: jax.Array,
    noise: jax.Array,
    t: jax.Array,
    r: jax.Array,
    condition: PyTree,
    key: jax.Array | None = None,
    epsilon: float = 0.005,
) -> jax.Array:
    """Returns dF/dt (B, …) from F at t ± ε, with x_{t±ε} rebuilt from the same (x, ε); the error is O(ε²).

    Within ε of an end of the time domain the outer point is the end itself, where the error is O(ε), so that the
    network never sees a time outside the domain.

    Args:
        net: The network; in float32, since in bfloat16 the quotient divides rounding noise by ε.
        transport: The transport.
        x, noise: Data and noise (B, …) of the path.
        t, r: The times (B,) where the jumps start and end.
        condition: A pytree of (B, …) arrays.
        key: Random keys (B,) for dropout, or None.
        epsilon: Half the step of the difference, in units of time.
    """
    above = jnp.minimum(t + epsilon, transport.T_max)
    below = jnp.maximum(t - epsilon, transport.T_min)
    outputs = net(
        tuple(query(transport, interpolate(transport, x, noise, s), s, r, condition, key) for s in (above, below))
    )
    return (outputs[0].F - outputs[1].F) / expand(above - below, x)
