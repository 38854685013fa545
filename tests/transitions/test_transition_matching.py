"""Difference transition matching: what the head learns, and that its draws have the law of the data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.waves import LATE, plain_times, rows_of
from tim_jax.networks import TiM
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.gaussian import Gaussian
from tim_jax.transitions.jump import prediction_target
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.transitions.own_network import generate
from tim_jax.transitions.sampling.settings import Sampling
from tim_jax.types import Output, Query


def exact_head(gaussian, y_s, s, x_t, t):
    """E[Y − y_0] given y_s and x_t, all numbers independent."""
    transport, t = gaussian.transport, t.reshape(-1, *[1] * (x_t.ndim - 1))
    alpha, sigma, alpha_hat, sigma_hat = (
        f(t) for f in (transport.alpha, transport.sigma, transport.alpha_hat, transport.sigma_hat)
    )
    mean = prediction_target(transport, *gaussian.posterior_means(x_t, t.ravel()), t.ravel())
    # The variance of α̂ x + σ̂ ε given α x + σ ε.
    variance = (gaussian.std * (alpha_hat * sigma - sigma_hat * alpha) / gaussian.marginal_std(t)) ** 2
    slope = (s * variance - (1 - s)) / ((1 - s) ** 2 + s**2 * variance)
    return mean + slope * (y_s - s * mean)


def exact_net(gaussian, theta=0.0):
    """The network whose head is exact, moved by θ in some direction."""

    def net(x_t, t, r, condition):
        y = condition["transition"]

        def head(y, s):
            return exact_head(gaussian, y, s, x_t, t) + theta * jnp.cos(y + 2 * s)

        if "transition_s" in condition:
            return head(y, condition["transition_s"][..., None])
        times = condition["transition_times"][0]

        def step(y, pair):
            now, then = pair
            return y + (then - now) * head(y, now), None

        return jax.lax.scan(step, y, (times[:-1], times[1:]))[0]

    return net


@pytest.mark.parametrize("transport", ["ot_fm", "trigflow", "vp"])
def test_few_transitions_keep_the_spread_of_the_data(transport, x64):
    """In four transitions draws have mean and deviation of the data; means of draws (Euler's method) have not."""
    transport = plain_times(transport)
    gaussian, noise = Gaussian(transport, mean=0.3, std=0.6), jax.random.normal(jax.random.key(0), (5_000, 1))
    objective = OBJECTIVES["difference_transition_matching"](transport)
    sampling = Sampling(sampler="default", draw_steps=64)
    draw = jax.jit(lambda noise, key: generate(objective, exact_net(gaussian), noise, 4, key=key, sampling=sampling))
    x = draw(noise, jax.random.key(1))
    assert abs(x.mean() - 0.3) < 0.03 and abs(x.std() - 0.6) < 0.03
    flow = OBJECTIVES["flow_matching"](transport)
    sampling = Sampling(sampler="euler")
    solve = jax.jit(lambda x: generate(flow, lambda x, t, r: gaussian.F(x, t, t), x, 4, sampling=sampling))
    euler = solve(noise)
    assert abs(euler.std() - 0.6) > 2 * abs(x.std() - 0.6)


@pytest.mark.parametrize("transport", ["ot_fm", "edm"])
def test_the_gradient_vanishes_at_the_exact_head(transport, x64):
    """Within four standard errors of the mean over examples."""
    transport = plain_times(transport)
    gaussian = Gaussian(transport, mean=0.3, std=0.6)
    objective = OBJECTIVES["difference_transition_matching"](transport)
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (20_000, 1, 1, 4)
    x, noise = 0.3 + 0.6 * jax.random.normal(keys[0], shape), jax.random.normal(keys[1], shape)
    t, r = objective.draw(keys[2], len(x), positions=1)
    t = r = jnp.minimum(t, 0.97 * transport.T_max)

    def losses(theta):
        net = exact_net(gaussian, theta)

        def online(queries):
            return tuple(Output(net(q.x_t, q.t, q.r, q.condition)) for q in queries)

        return objective.loss({"online": online}, rows_of(x, noise), t, r, LATE, keys[3])[0]

    slopes = jax.jit(lambda theta: jax.jvp(losses, (theta,), (jnp.ones_like(theta),))[1])
    at, off = (slopes(jnp.float64(theta)) for theta in (0.0, 0.2))
    error = at.std() / len(x) ** 0.5
    assert abs(at.mean()) < 4 * error < abs(off.mean())


def test_times_are_those_of_the_grid():
    objective = OBJECTIVES["difference_transition_matching"](TRANSPORTS["ot_fm"]())
    t, r = objective.draw(jax.random.key(0), 2000, positions=4)
    np.testing.assert_array_equal(np.unique(np.asarray(t) * 32), np.arange(1, 33))
    np.testing.assert_array_equal(t, r)


def test_a_token_has_one_s():
    objective = dataclasses.replace(OBJECTIVES["difference_transition_matching"](TRANSPORTS["ot_fm"]()), patch=2)
    _, s = objective.start(jax.random.key(0), jnp.zeros((3, 4, 8, 1)))
    tokens = s.reshape(3, 2, 2, 4, 2).swapaxes(2, 3).reshape(24, 4)
    assert (tokens == tokens[:, :1]).all() and len(np.unique(tokens)) == 24


@pytest.mark.slow
def test_a_draw_of_the_network_is_eulers_method_along_its_head():
    net = TiM(width=32, depth=1, heads=2, bottleneck=16, encoder_depth=1, channels=1, num_classes=10,
              transition_head=True)  # fmt: skip
    x, y, s, t = jnp.ones((2, 4, 4, 1)), jnp.full((2, 4, 4, 1), 0.3), jnp.zeros((2, 4, 4)), jnp.full(2, 0.5)
    label = {"label": jnp.arange(2)}

    def query(**inputs):
        return (Query(x, t, t, label | inputs),)

    params = net.init(jax.random.key(0), query(transition=y, transition_s=s))
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)
    times = jnp.array([0.0, 0.2, 0.7, 1.0])
    (drawn,) = net.apply(params, query(transition=y, transition_times=jnp.tile(times, (2, 1))))
    for now, then in zip(times, times[1:]):
        (output,) = net.apply(params, query(transition=y, transition_s=s + now))
        y = y + (then - now) * output.F
    np.testing.assert_allclose(drawn.F, y, atol=1e-5)
    assert abs(y - 0.3).max() > 0.1
    with pytest.raises(ValueError, match="'transition_s' or 'transition_times'"):
        net.apply(params, query(transition=y))
