"""TwinFlow: its targets and its matching against the exact flow of a Gaussian."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.waves import LATE, SHAPE, plain_times, random, rows_of, wave
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.consistency import Group
from tim_jax.transitions.gaussian import Gaussian
from tim_jax.transitions.jump import interpolate
from tim_jax.transitions.objectives.kinds import of_kind
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.transitions.objectives.twinflow import SHORT, TwinFlow, check_negative_times
from tim_jax.transitions.weights import AdaptiveWeight
from tim_jax.types import Output

with_negative_times = pytest.mark.parametrize("transport", ["ot_fm", "trigflow", "cosine", "vp"])


def twin_net(real, fake, theta=0.0):
    """The exact network of one Gaussian at times t, and of another at −t, moved by θ in some direction."""

    def answer(q):
        F = jnp.where(column(q.t >= 0), real.F(q.x_t, abs(q.t), abs(q.r)), fake.F(q.x_t, abs(q.t), abs(q.r)))
        return Output(F + theta * wave(q.x_t, q.t, q.r))

    return lambda queries: tuple(map(answer, queries))


def column(t):
    return t[:, None, None, None]


class Expected(TwinFlow):
    """With fakes whose data and noise are means, as the target's expectation has them."""

    def with_fakes(self, net, group, noise):
        return group


@with_negative_times
def test_the_gradient_vanishes_where_fakes_have_the_law_of_the_data(transport, x64):
    """At the exact flow map with F(−t) = F(t), for first steps that are short."""
    transport = plain_times(transport)
    objective = of_kind(Expected, OBJECTIVES["twin_flow"](transport))
    twin = dataclasses.replace(objective.twin, step=1e-6)
    objective = dataclasses.replace(objective, twin=twin, adaptive=AdaptiveWeight(0.0))
    objective.check()
    gaussian = Gaussian(transport, mean=0.3, std=0.6)
    t, r = objective.draw(jax.random.key(0), SHAPE[0], positions=4)
    t = jnp.clip(t, 0.02, 0.98 * transport.T_max)
    r = jnp.where(objective.times.assign(SHAPE[0])[0], t, jnp.minimum(r, t))
    x_t = 0.3 * transport.alpha(column(t)) + gaussian.marginal_std(column(t)) * random(0)
    rows = rows_of(*gaussian.posterior_means(x_t, t))

    @jax.jit
    def slope(theta):
        def loss(theta):
            nets = dict.fromkeys(("online", "slow"), twin_net(gaussian, gaussian, theta))
            return objective.loss(nets, rows, t, r, LATE, jax.random.key(1))[0].sum()

        return jax.grad(loss)(theta)

    off = max(abs(slope(0.1)), abs(slope(-0.1)))
    assert jnp.isfinite(off) and off > 1e-3
    assert abs(slope(0.0)) < 1e-5 * off


@with_negative_times
def test_matching_draws_samples_to_the_data(transport, x64):
    """A step against its gradient brings the mean of samples nearer to that of the data."""
    transport = plain_times(transport)
    objective = OBJECTIVES["twin_flow"](transport)
    real, fake = Gaussian(transport, mean=0.5, std=0.6), Gaussian(transport, mean=-0.5, std=0.6)
    t = jnp.full(SHAPE[0], transport.T_max)
    group = Group(rows_of(random(0), random(1)), t, jnp.full_like(t, transport.T_min), random(2))
    x_T = interpolate(transport, group.examples.x, group.examples.noise, t)
    F = fake.F(x_T, t, group.r)
    again = jnp.linspace(0.2, 0.8, SHAPE[0]) * transport.T_max
    match = lambda F: objective.match(twin_net(real, fake), group, F, random(3), again).sum()  # noqa: E731
    gradient = jax.jit(jax.grad(match))(F)
    before, after = (objective.data(x_T, at, t).mean() for at in (F, F - 0.01 * gradient))
    assert before < after < 0.5


@with_negative_times
def test_fakes_are_jumps_from_noise(transport, x64):
    transport = plain_times(transport)
    gaussian, t = Gaussian(transport, mean=0.3, std=0.6), jnp.full(SHAPE[0], 0.5 * transport.T_max)
    objective, rows = OBJECTIVES["twin_flow"](transport), rows_of(random(0), random(1))
    fakes = objective.with_fakes(twin_net(gaussian, gaussian), Group(rows, t, t, random(2)), random(3))
    T, end = jnp.full_like(t, transport.T_max), jnp.full_like(t, transport.T_min)
    expected = gaussian.flow_map(transport.sigma(column(T)) * random(3), T, end) / transport.alpha(column(end))
    np.testing.assert_allclose(fakes.examples.x, expected, rtol=1e-9)
    np.testing.assert_array_equal(fakes.examples.noise, rows.noise)
    seen = objective.twin_of(fakes)
    np.testing.assert_array_equal(seen.t, -t)
    np.testing.assert_array_equal(seen.t, seen.r)


def test_shares_of_a_batch_are_whole():
    objective = OBJECTIVES["twin_flow"](TRANSPORTS["ot_fm"]())
    assert objective.batch_multiple == 4
    t, r = map(np.asarray, objective.draw(jax.random.key(0), 64, positions=4))
    whole, fakes = (t == 1) & (r == 0), t == r
    short = ~whole & ~fakes & (t - r <= SHORT * t)
    assert whole.sum() == fakes.sum() == 16 and short.sum() >= 16
    for block in (t == r).reshape(8, 8), whole.reshape(8, 8):
        assert (block == block[0]).all()
    uneven = dataclasses.replace(objective, twin=dataclasses.replace(objective.twin, share_short=0.1))
    assert uneven.batch_multiple == 20


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_which_transports_have_negative_times(transport):
    if transport in ("ddpm", "ve", "edm"):
        with pytest.raises(ValueError, match=f"^transport.name is {transport!r}; it must be"):
            check_negative_times(TRANSPORTS[transport]())
    else:
        check_negative_times(TRANSPORTS[transport]())
