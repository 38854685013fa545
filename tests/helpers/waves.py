"""Examples, networks and times that the tests of objectives share."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.annealing import Annealing
from tim_jax.transitions.gaussian import Gaussian
from tim_jax.transitions.jump import expand, interpolate, prediction_target
from tim_jax.transitions.objectives.straightening import Straightening, joined
from tim_jax.types import Examples, Output

SHAPE = (16, 2, 2, 3)
LATE = jnp.int32(1_000_000)  # all that warms up is over
every_transport = pytest.mark.parametrize("transport", TRANSPORTS)


def plain_times(transport):
    """The transport, whose networks see t itself."""
    return dataclasses.replace(TRANSPORTS[transport](), c_noise=lambda t: t, time_of_c_noise=lambda t: t)


def random(seed, shape=SHAPE):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def rows_of(x, noise, label=None):
    """Examples, with losers and rewards for those who ask for them."""
    label = jnp.arange(len(x)) % 5 if label is None else label
    null, more = {"label": jnp.full_like(label, 9)}, {"loser": x[::-1], "reward": jnp.linspace(-1, 1, len(x))}
    return Examples(x, noise, {"label": label}, null, is_null=label == 9, **more)


def answer(F, velocity, pooled=None):
    """An Output with every head that objectives ask for."""
    pooled = F[:, 0, 0] if pooled is None else pooled
    zeros = jnp.zeros(len(F))
    heads = {"velocity": velocity, "log_variance": zeros, "joint_log_variance": zeros, "pooled": pooled}
    return Output(F, None, heads)


def wave(x, t, r):
    """Some smooth function of state and times, (B, …)."""
    t, r = t[:, None, None, None], r[:, None, None, None]
    return jnp.sin(2 * x + t - 0.5 * r) + 0.3 * jnp.cos(x * r + 0.2 * t)


def leaves_the_flow(objective):
    """Whether two jumps begin with one along the data's velocity."""
    return objective.consistency == "semigroup" and objective.bootstrap.first == "velocity"


def nothing(objective):
    """What share of a gradient elsewhere counts as none where the objective has its minimum, `in_the_limit`."""
    return 1e-5 if leaves_the_flow(objective) else 1e-6


def in_the_limit(objective):
    """The objective, where it has the exact flow map for its minimum.

    That is with all of the tangent, since Align Your Flow's 0.99 of it aims a little beside the flow map, and with
    first jumps along the data's velocity that are short, since longer ones leave the flow.
    """
    bootstrap = objective.bootstrap
    if leaves_the_flow(objective):
        bootstrap = dataclasses.replace(bootstrap, alpha=Annealing(final=1e-6))
    tangent = dataclasses.replace(objective.tangent, max_share=1.0)
    return dataclasses.replace(objective, bootstrap=bootstrap, tangent=tangent)


@dataclasses.dataclass(frozen=True)
class Straightened:
    """The flow of a Gaussian that is straight over each segment, x_t = α_t μ + w_t u for x_a = α_a μ + u."""

    objective: Straightening
    gaussian: Gaussian

    @property
    def transport(self):
        return self.objective.transport

    def F(self, x_t, t, r):
        transport, gaussian, (t_a, t_b) = self.objective.transport, self.gaussian, self.objective.segment(t)
        one = jnp.ones_like(x_t)
        slope = gaussian.marginal_std(expand(t_b, x_t)) / gaussian.marginal_std(expand(t_a, x_t)) * one
        x, noise = joined(transport, one, slope, t_a, t_b)
        u = (x_t - transport.alpha(expand(t, x_t)) * gaussian.mean) / interpolate(transport, x, noise, t)
        return prediction_target(transport, gaussian.mean + u * x, u * noise, t)


def learnt(objective, gaussian):
    """What has the prediction F(x_t, t, r) that an objective learns of a Gaussian: its exact flow map, or a flow."""
    return Straightened(objective, gaussian) if isinstance(objective, Straightening) else gaussian


def exact_data(objective, gaussian):
    """A function (x_t, t, r) → (x, ε), of x_t, with which the exact flow map is the objective's minimum.

    That are posterior means, as the targets' expectation has them. For imm x_s lies on the path of x_t as well.
    """
    if not hasattr(objective, "middle"):
        return lambda x_t, t, r: gaussian.posterior_means(x_t, t)

    def of_two_states(x_t, t, r):
        s = objective.middle(t, r)
        s = jnp.where(s == t, t - 1e-3, s)
        x_s = gaussian.flow_map(x_t, t, s)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (
            [expand(f(time), x_t) for f in (objective.transport.alpha, objective.transport.sigma)] for time in (t, s)
        )
        area = alpha_t * sigma_s - alpha_s * sigma_t
        return (sigma_s * x_t - sigma_t * x_s) / area, (alpha_t * x_s - alpha_s * x_t) / area

    return of_two_states
