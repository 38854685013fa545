"""SADA, arXiv 2507.17135: evaluations are skipped while the trajectory of an image is stable.

With the slopes u of the straight path (as in `a_flops.py`) at the last three evaluations, the next one is skipped where

    −mean(u_n − 2 u_{n−1} + u_{n−2}) ≤ 0,

the criterion of the published code for flow matching. That of the paper is the mean product of this difference and of
what the sampler's state differs from a prediction by; after Euler's step this is −⅜δ (u_n − 2 u_{n−1} + u_{n−2}), so
that it would skip always. In place of an evaluation x̂ is extrapolated as a line through the last two.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.transitions.sampling.jumps import euler
from tim_jax.transitions.sampling.plans import (
    SamplingPlan,
    data_prediction,
    host_transport,
    remembering,
    straight_slope,
)
from tim_jax.transitions.sampling.rules import Arrays, Rule
from tim_jax.transitions.transports import Transport

POINTS = 3  # slopes that the criterion is of


class _Known(NamedTuple):
    """Coefficients of n evaluations; of the POINTS ones before each where there is a second axis, the latest first.

    Attributes:
        may_skip: (n,) whether there are as many, and it is not the last.
        slope_of_state, slope_of_F: The weights of state and prediction in the slope u.
        data_of_state, data_of_F: Those in x̂.
        reach: (n, POINTS − 1) how far an evaluation lies from the last one, in units of the last one's distance to the
            one before, or to the one before that.
        of_state, of_data: (n,) the weights of state and x̂ in F.
    """

    may_skip: np.ndarray
    slope_of_state: np.ndarray
    slope_of_F: np.ndarray
    data_of_state: np.ndarray
    data_of_F: np.ndarray
    reach: np.ndarray
    of_state: np.ndarray
    of_data: np.ndarray


def sada(transport: Transport, times: np.ndarray) -> SamplingPlan:
    """SADA with Euler's steps: at most one evaluation a step, and at least every second one. First order.

    The first three evaluations are made, and the last one.
    """
    host, t = host_transport(transport), times[:-1]
    number = np.arange(len(t))
    before = t[np.maximum(number[:, None] - np.arange(1, POINTS + 1), 0)]
    path = [host.sigma(at) / (host.alpha(at) + host.sigma(at)) for at in (t, before)]
    behind = path[1][:, :1] - path[1][:, 1:]
    reach = (path[0] - path[1][:, 0])[:, None] / np.where(behind == 0, 1, behind)
    known = _Known(
        (number >= POINTS) & (number < len(t) - 1),
        *straight_slope(transport, before),
        *data_prediction(host, before),
        reach,
        host.sigma_hat(t) / host.sigma(t),
        -host.determinant(t) / host.sigma(t),
    )
    plan = remembering(euler(transport, times), POINTS + 1)
    return plan._replace(rule=Rule(known, guess=_guess))


def instability(slopes: Arrays) -> jax.Array:
    """Returns the criterion (B,) of three slopes (B, …), the latest first: where it is above 0 an evaluation is due."""
    second = slopes[0] - 2 * slopes[1] + slopes[2]
    return -second.mean(tuple(range(1, second.ndim)))


def _guess(known: Any, states: Arrays, predictions: Arrays, made: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The prediction by an extrapolated x̂, which will do where slopes are stable and the last one was not guessed."""
    slopes, data = (
        tuple(of_state[k] * states[k + 1] + of_F[k] * predictions[k] for k in range(POINTS))
        for of_state, of_F in (
            (known.slope_of_state, known.slope_of_F),
            (known.data_of_state, known.data_of_F),
        )
    )
    # Of two evaluations that were made: no two guesses follow one another.
    was_made = made[1].reshape(-1, *[1] * (data[0].ndim - 1))
    further = [known.reach[k] * (data[0] - data[k + 1]) for k in range(POINTS - 1)]
    x_hat = data[0] + jnp.where(was_made, *further)
    will_do = (known.may_skip > 0) & made[0] & (instability(slopes) <= 0)
    return known.of_state * states[0] + known.of_data * x_hat, will_do
