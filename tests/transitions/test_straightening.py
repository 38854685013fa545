"""Segmented straightening: its segments, and that one Euler step over each is the teacher's own way."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.waves import Straightened, every_transport, plain_times, random, rows_of
from tests.transitions.test_distillation import column, some_velocity
from tests.transitions.test_objectives import ExactTeacher
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.gaussian import Gaussian
from tim_jax.transitions.jump import interpolate, jump
from tim_jax.transitions.objectives.straightening import Segments, joined
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.types import Output

SHAPE = (16, 2, 2, 3)


def straightening(transport, **settings):
    objective = dataclasses.replace(OBJECTIVES["straightening"](transport), segments=Segments(**settings))
    objective.check()
    return objective


def test_segments_are_half_open_from_above():
    t = jnp.array([0.0, 1e-6, 0.25, 0.3, 0.5, 0.99, 1.0])
    for objective in (
        straightening(TRANSPORTS["ot_fm"](), count=4),
        straightening(TRANSPORTS["ot_fm"](), edges=(1.0, 0.75, 0.5, 0.25, 0.0)),
    ):
        t_a, t_b = objective.segment(t)
        np.testing.assert_allclose(t_a, [0.25, 0.25, 0.25, 0.5, 0.5, 1, 1])
        np.testing.assert_allclose(t_b, [0, 0, 0, 0.25, 0.25, 0.75, 0.75])


@every_transport
def test_a_path_goes_through_both_states(transport, x64):
    transport = plain_times(transport)
    objective = straightening(transport, count=3)
    t_a, t_b = objective.segment(transport.T_min + (transport.T_max - transport.T_min) * jnp.linspace(0, 1, SHAPE[0]))
    x_a, x_b = random(0, SHAPE), random(1, SHAPE)
    pair = joined(transport, x_a, x_b, t_a, t_b)
    np.testing.assert_allclose(interpolate(transport, *pair, t_a), x_a, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(interpolate(transport, *pair, t_b), x_b, rtol=1e-8, atol=1e-8)


def test_for_straight_paths_it_is_the_slope_of_the_chord(x64):
    """F* = (x_a − x_b)/(t_a − t_b), x_b by Heun's method along the teacher."""
    objective = straightening(plain_times("ot_fm"), count=2, solver_steps=3)
    x, noise, t = random(0, SHAPE), random(1, SHAPE), jnp.linspace(0.02, 0.98, SHAPE[0])
    t_a, t_b = (jnp.where(t > 0.5, upper, lower) for upper, lower in ((1.0, 0.5), (0.5, 0.0)))
    x_a = (1 - column(t_a)) * x + column(t_a) * noise
    x_b = x_a
    for k in range(3):
        # Noise levels 2/π arctan(t/(1 − t)) at equal distances.
        level = lambda s: 2 / jnp.pi * jnp.arctan2(s, 1 - s)  # noqa: E731
        ends = [level(t_a) + j / 3 * (level(t_b) - level(t_a)) for j in (k, k + 1)]
        now, then = (jnp.sin(jnp.pi / 2 * u) / (jnp.sin(jnp.pi / 2 * u) + jnp.cos(jnp.pi / 2 * u)) for u in ends)
        v = some_velocity(x_b, now)
        y = x_b + column(then - now) * v
        x_b = x_b + column(then - now) * (v + some_velocity(y, then)) / 2
    nets = {"teacher": lambda queries: tuple(Output(some_velocity(q.x_t, q.t)) for q in queries)}
    rows = objective.distilled(nets, rows_of(x, noise), t)
    np.testing.assert_allclose(rows.noise - rows.x, (x_a - x_b) / column(t_a - t_b), rtol=1e-9, atol=1e-9)
    line = x_a + column((t_a - t) / (t_a - t_b)) * (x_b - x_a)
    np.testing.assert_allclose(interpolate(objective.transport, rows.x, rows.noise, t), line, atol=1e-10)


@every_transport
@pytest.mark.parametrize("grid", ["uniform", "edm"])
def test_one_step_over_each_segment_is_the_teachers_way(transport, grid, x64):
    """The flow at which the loss is 0 takes noise where the exact flow does, in as many Euler steps as segments."""
    transport = plain_times(transport)
    gaussian = Gaussian(transport, mean=0.3, std=0.6)
    objective = dataclasses.replace(
        straightening(transport, count=3, grid=grid), teacher=ExactTeacher(gaussian=gaussian)
    )
    straight = Straightened(objective, gaussian)
    ends = objective.segments.times(transport)[::-1]
    x = start = transport.sigma(transport.T_max) * random(0, SHAPE)
    for now, then in zip(ends[:-1], ends[1:]):
        now, then = jnp.full(SHAPE[0], now), jnp.full(SHAPE[0], then)
        x = jump(transport, x, straight.F(x, now, now), now, then)
    first, last = (jnp.full(SHAPE[0], end) for end in (ends[0], ends[-1]))
    np.testing.assert_allclose(x, gaussian.flow_map(start, first, last), rtol=1e-6, atol=1e-8)

    t = transport.T_min + (transport.T_max - transport.T_min) * jnp.linspace(0.01, 1, SHAPE[0])
    nets = {"online": lambda queries: tuple(Output(straight.F(q.x_t, q.t, q.r)) for q in queries), "teacher": None}
    losses, _ = objective.loss(nets, rows_of(random(0, SHAPE), random(1, SHAPE)), t, t, jnp.int32(0))
    assert losses.max() < 1e-12


def test_segments_that_a_search_found_are_taken(x64):
    edges = (1.0, 0.6, 0.1, 0.0)
    objective = straightening(TRANSPORTS["ot_fm"](), edges=edges)
    np.testing.assert_allclose(objective.segments.times(objective.transport), edges[::-1])
    for wrong in ((1.0,), (1.0, 0.5, 0.6, 0.0), (0.9, 0.0)):
        with pytest.raises(ValueError, match="objective.segments.edges"):
            straightening(TRANSPORTS["ot_fm"](), edges=wrong)
    assert jax.tree.leaves(objective.segment(jnp.array([0.3])))[0] == 0.6
