"""Samplers whose way back is exact: what the last two states lead to leads back to them, whatever the network.

Leapfrog predicts in the middle of a jump over two steps, for dx = x̂ dα + ε̂ dσ:

    x_{n+1} = x_{n−1} + (α_{n+1} − α_{n−1}) x̂_n + (σ_{n+1} − σ_{n−1}) ε̂_n

Solved for x_{n−1} this is the same step on the reversed times, with the same prediction at x_n. Its two states are two
chains, each carried by predictions at the other. It is BDIA with γ = 1 (arXiv 2307.10829), for any transport. With
γ < 1 it is of first order, as are the mixed chains of EDICT (arXiv 2211.12446), and what they damp on the way down
grows on the way up, by γ^{−n}. Leapfrog damps nothing, and its weights stay finite where α or σ is 0.
"""

import numpy as np

from tim_jax.transitions.sampling.jumps import euler
from tim_jax.transitions.sampling.plans import SamplingPlan, host_transport, linear
from tim_jax.transitions.transports import Transport


def leapfrog(transport: Transport, times: np.ndarray) -> SamplingPlan:
    """The midpoint rule over two steps, after a first one of Euler's: one evaluation a step. Second order."""
    first, host = euler(transport, times), host_transport(transport)
    a, b = np.zeros((2, len(times) - 1, 2))
    a[:, 0], b[:, 0] = first.a[:, 0], first.b[:, 0]
    # Jumps from t_n by one prediction: the one to t_{n+1} less the one to t_{n−1}.
    t, before = times[1:-1], times[:-2]
    a[1:, 0] -= host.coefficient_A(t, before)
    b[1:, 0] -= host.coefficient_B(t, before)
    a[1:, 1] = 1
    return linear(first.t, first.s, a.T, b.T)
