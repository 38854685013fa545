"""The perceptual term: x̂ against x by frozen features, where there is not too much noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.waves import every_transport, random, rows_of
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.jump import interpolate, prediction_target
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.transitions.own_network import mean_loss
from tim_jax.transitions.perceptual import PERCEPTUAL, Perceptual
from tim_jax.types import Output

SHAPE = (16, 8, 8, 3)
every_features = pytest.mark.parametrize("features", PERCEPTUAL)


@every_features
@every_transport
def test_true_data_have_no_error(transport, features, x64):
    transport, x, noise = TRANSPORTS[transport](), random(0, SHAPE), random(1, SHAPE)
    t = transport.time_of_level(jnp.linspace(0.05, 0.9, 16))
    x_t, F = interpolate(transport, x, noise, t), prediction_target(transport, x, noise, t)
    term = jax.jit(lambda F: Perceptual(1.0, features, max_time=1.0)(transport, x, x_t, F, t))
    assert term(F).max() < 1e-12
    assert term(1.1 * F).min() > 1e-8


@pytest.mark.slow
def test_above_a_time_there_is_no_term(x64):
    transport, x, noise = TRANSPORTS["ot_fm"](), random(0, SHAPE), random(1, SHAPE)
    t = jnp.linspace(0.05, 1, 16)
    slope = jax.grad(lambda F: Perceptual(1.0, max_time=0.5)(transport, x, noise, F, t).sum())(0 * x)
    assert jnp.isfinite(slope).all()
    np.testing.assert_array_equal(jnp.abs(slope).max((1, 2, 3)) > 0, t <= 0.5)


def test_a_pyramid_is_a_sum_over_sizes(x64):
    x, other = random(0, SHAPE), random(1, SHAPE)
    transport, t = TRANSPORTS["ot_fm"](), jnp.full(16, 0.5)
    found = Perceptual(1.0, "pyramid")(transport, x, other, 2 * (other - x), t)  # x̂ is x
    assert found.max() < 1e-20
    found = Perceptual(1.0, "pyramid")(transport, x, x, 2 * (x - other), t)  # x̂ is `other`
    whole, half = np.array((x - other) ** 2), np.array(x - other).reshape(16, 4, 2, 4, 2, 3).mean((2, 4))
    quarter = half.reshape(16, 2, 2, 2, 2, 3).mean((2, 4))
    parts = [np.mean(each, axis=(1, 2, 3)) for each in (whole, half**2, quarter**2)]
    np.testing.assert_allclose(found, np.mean(parts, axis=0), rtol=1e-12)


@pytest.mark.parametrize("name", ["flow_matching", pytest.param("mean_flow", marks=pytest.mark.slow)])
def test_an_objective_has_the_term_in_all_its_groups(name, x64):
    objective = OBJECTIVES[name](TRANSPORTS["ot_fm"]())
    more = dataclasses.replace(objective, perceptual=Perceptual(0.5, "pyramid"))
    rows, t = rows_of(random(0, SHAPE), random(1, SHAPE)), jnp.linspace(0.1, 1, 16)
    r = jnp.where(objective.times.assign(16)[0], t, 0.3 * t)

    def net(queries):
        return tuple(Output(jnp.sin(q.x_t + q.t[:, None, None, None])) for q in queries)

    (before, _), (after, _) = (each.loss({"online": net}, rows, t, r, jnp.int32(0)) for each in (objective, more))
    F, x_t = jnp.sin, interpolate(objective.transport, rows.x, rows.noise, t)
    expected = more.perceptual(objective.transport, rows.x, x_t, F(x_t + t[:, None, None, None]), t)
    np.testing.assert_allclose(after - before, 0.5 * expected, rtol=1e-9, atol=1e-12)
    assert (expected[t <= 0.8] > 0).all()


def test_vectors_are_no_images():
    objective = dataclasses.replace(OBJECTIVES["flow_matching"](TRANSPORTS["ot_fm"]()), perceptual=Perceptual(1.0))
    with pytest.raises(ValueError, match="objective.perceptual.weight is 1.0; it must be 0 for examples"):
        mean_loss(objective, lambda x_t, t, r: x_t, jnp.ones((16, 20)), jax.random.key(0))
