"""Times that the network is told alike (E-TSDM): no slope in t within an interval, and nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.waves import LATE, answer, every_transport, random, rows_of, wave
from tim_jax.transitions import OBJECTIVES, TRANSPORTS, Sampling, make_plan, time_grid
from tim_jax.transitions.derivative import jvp, query
from tim_jax.transitions.jump import velocity
from tim_jax.transitions.transports import with_shared_times

SHAPE = (12, 2, 2, 3)


def shared(name, below=0.1, intervals=5):
    return with_shared_times(TRANSPORTS[name](), below, intervals)


@every_transport
def test_an_interval_has_the_number_of_its_lower_edge(transport, x64):
    plain, told = TRANSPORTS[transport](), shared(transport)
    domain = plain.T_max - plain.T_min
    low = jnp.repeat(jnp.arange(5) * 0.02, 4) + jnp.tile(jnp.array([1e-5, 0.005, 0.01, 0.0199]), 5)
    edges = plain.T_min + domain * jnp.repeat(jnp.arange(5) * 0.02, 4)
    np.testing.assert_allclose(told.c_noise(plain.T_min + domain * low), plain.c_noise(edges), rtol=1e-9)
    above = plain.T_min + domain * jnp.linspace(0.1001, 1, 50)
    np.testing.assert_array_equal(told.c_noise(above), plain.c_noise(above))
    np.testing.assert_array_equal(told.c_noise(jnp.array([plain.T_min])), plain.c_noise(jnp.array([plain.T_min])))
    for name in ("alpha", "sigma", "alpha_hat", "sigma_hat"):
        np.testing.assert_array_equal(getattr(told, name)(low), getattr(plain, name)(low))


@every_transport
def test_the_network_has_no_slope_in_t_near_the_data(transport, x64):
    """dF/dt is that along the state alone, where F leaps only from interval to interval."""
    told = shared(transport)
    x, noise = random(0, SHAPE), random(1, SHAPE)
    share = jnp.linspace(0.001, 0.0995, SHAPE[0])
    t = told.T_min + (told.T_max - told.T_min) * share
    r = jnp.full_like(t, told.T_min)

    def net(queries):
        return tuple(answer(wave(q.x_t, q.t, q.r), q.x_t) for q in queries)

    _, _, dF = jvp(net, told, x, noise, t, r, None)
    x_t = told.alpha(t)[:, None, None, None] * x + told.sigma(t)[:, None, None, None] * noise
    here = query(told, x_t, t, r, None)
    along = jax.jvp(lambda x: wave(x, here.t, here.r), (x_t,), (velocity(told, x, noise, t),))[1]
    np.testing.assert_allclose(dF, along, rtol=1e-9, atol=1e-9)
    assert jax.jacfwd(lambda t: told.c_noise(t))(t).max() == 0
    assert len(np.unique(np.asarray(here.t).round(9))) == 5


MORE = [pytest.param(name, marks=pytest.mark.slow) for name in ("flow_matching", "scm", "soflow", "facm")]


@pytest.mark.parametrize("name", ["tim", "tvm", *MORE])
def test_objectives_learn_with_it(name):
    objective = OBJECTIVES[name](shared("ot_fm", 0.4, 3))
    objective.check()

    @jax.jit
    def loss(scale):
        def net(queries):
            return tuple(answer(scale * wave(q.x_t, q.t, q.r), q.x_t) for q in queries)

        nets = dict.fromkeys(("online", "slow"), net)
        rows = rows_of(random(0, (16, 2, 2, 3)), random(1, (16, 2, 2, 3)))
        return objective(nets, rows, LATE, jax.random.key(0))[0].mean()

    value, slope = jax.value_and_grad(loss)(jnp.float32(0.3))
    assert jnp.isfinite(value) and jnp.isfinite(slope) and slope != 0


def test_samplers_tell_the_network_the_same():
    told, plain = shared("ot_fm", 0.5, 2), TRANSPORTS["ot_fm"]()
    plan = make_plan(told, time_grid(told, 10), Sampling(sampler="flow_map"))
    np.testing.assert_allclose(plan.t, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.25, 0.25, 0, 0], atol=1e-12)
    exact = make_plan(plain, time_grid(plain, 10), Sampling(sampler="flow_map"))
    np.testing.assert_array_equal(plan.b, exact.b)
