"""A network of one transport asked as one of another: equal noise level, rescaled state, rebuilt prediction.

With θ = arctan(σ/α) and n = √(α² + σ²) of the transport that is asked in, θ' and n' of the network's own, s the time
with θ'_s = θ_t, and x̂, ε̂ what the network's own prediction at (x'_s, s) stands for,

    x'_s = (n'_s/n_t) x_t,   F(x_t, t, r) = α̂_t x̂ + σ̂_t ε̂

States of equal level are those of the same x and ε, up to their size, so that F is exact where the network is; and the
pair of a jump t → r is that of the jump between the levels of t and r in every transport, so that r ≠ t is as good.

Where the network's own time domain ends before θ_t, it is asked at its end s, and the pair is turned by the rest:

    F = α̂_t (x̂ cos δ − ε̂ sin δ) + σ̂_t (x̂ sin δ + ε̂ cos δ),   δ = θ_t − θ'_s

which is a pair of x_t again, and has TrigFlow's prediction cos θ ε̂ − sin θ x̂ as it was there. The error is of the order
of δ: at OT-FM's t = 1 that is 0.0008 for TrigFlow, 0.0066 for VP, 0.01 for VE and 0.0125 for EDM, and at its t = 0
−0.001 for VP, −0.01 for EDM and −0.02 for VE.
"""

import jax
import jax.numpy as jnp

from tim_jax.transitions import prediction
from tim_jax.transitions.derivative import Net
from tim_jax.transitions.jump import expand, prediction_target
from tim_jax.transitions.transports import Transport
from tim_jax.types import Output, PyTree, Query


def in_transport(net: Net, own: Transport, transport: Transport) -> Net:
    """Returns a network as one of another transport, whose `time_of_c_noise` must invert its c_noise.

    Args:
        net: The network. Its Outputs have an F, and no heads that stand for one.
        own: The network's own transport.
        transport: The transport of the Queries that the returned network is called on, and of its F.
    """

    def times(query: Query) -> tuple[jax.Array, jax.Array]:
        """The time of a query, and that of its noise level, or of the next, in the network's own time domain."""
        t = transport.time_of_c_noise(query.t)
        return t, own.time_of_level(transport.level(t))

    def asked(query: Query) -> Query:
        t, s = times(query)
        r = own.time_of_level(transport.level(transport.time_of_c_noise(query.r)))
        x_s = expand(size(own, s) / size(transport, t), query.x_t) * query.x_t
        return query._replace(x_t=x_s, t=own.c_noise(s), r=own.c_noise(r))

    def answered(query: Query, own_query: Query, output: Output) -> Output:
        t, s = times(query)
        x, noise = prediction.data_and_noise(own, own_query.x_t, output.F, s)
        delta = expand(jnp.pi / 2 * (transport.level(t) - own.level(s)), x)
        cos, sin = jnp.cos(delta), jnp.sin(delta)
        return output._replace(F=prediction_target(transport, cos * x - sin * noise, sin * x + cos * noise, t))

    def other(queries: tuple[Query, ...], **options: PyTree) -> tuple[Output, ...]:
        own_queries = tuple(map(asked, queries))
        return tuple(map(answered, queries, own_queries, net(own_queries, **options)))

    return other


def size(transport: Transport, t: jax.Array) -> jax.Array:
    """Returns n_t = √(α_t² + σ_t²), elementwise; no transport's is ever 0."""
    return jnp.hypot(transport.alpha(t), transport.sigma(t))
