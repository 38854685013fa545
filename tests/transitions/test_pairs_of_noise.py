"""Pairs of noise and sample: noise that is refreshed (SlimFlow), and one step distilled from them (InstaFlow)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.waves import random, rows_of
from tim_jax.transitions import DISTRIBUTIONS, TRANSPORTS, Times
from tim_jax.transitions.annealing import Annealing
from tim_jax.transitions.objectives.kinds import unweighted
from tim_jax.transitions.objectives.table import OBJECTIVES
from tim_jax.transitions.pairs import refreshed
from tim_jax.types import Output

OT_FM = TRANSPORTS["ot_fm"]()
SLIM = dataclasses.replace(
    OBJECTIVES["flow_matching"](OT_FM), refresh=Annealing("cosine", 1.0, 0.0, end_share=0.5)
).following(400)
SHAPE = (64, 4, 4, 3)


def mixed(step, key=0):
    """(ε, √(1 − β²) ε + β ξ) at a step."""
    rows = rows_of(random(0, SHAPE), random(1, SHAPE))
    return rows.noise, refreshed(SLIM.refresh, rows, jnp.int32(step), jax.random.key(key)).noise


@pytest.mark.parametrize(
    "step, beta", [(0, 1.0), (50, (1 + np.cos(np.pi / 4)) / 2), (100, 0.5), (200, 0.0), (400, 0.0)]
)
def test_noise_of_pairs_sets_in_as_beta_falls(step, beta, x64):
    SLIM.check()
    noise, now = mixed(step)
    _, fresh = mixed(0)
    np.testing.assert_allclose(now, np.sqrt(1 - beta**2) * noise + beta * fresh, atol=1e-12)
    assert abs(jnp.std(now) - 1) < 0.05
    assert abs(jnp.mean(noise * fresh)) < 0.06
    if 0 < beta:
        assert (mixed(step, key=1)[1] != now).all()


def test_it_depends_on_the_step_alone_and_is_off_by_default():
    np.testing.assert_array_equal(mixed(77)[1], mixed(77)[1])
    rows = rows_of(random(0, SHAPE), random(1, SHAPE))
    assert refreshed(OBJECTIVES["flow_matching"](OT_FM).refresh, rows, jnp.int32(0), jax.random.key(0)) is rows
    assert SLIM.annealing_steps == 200


def test_a_training_step_sees_the_mixed_noise(x64):
    """At T_max a state is the noise itself; β is 1 at the first step."""
    objective = dataclasses.replace(SLIM, times=Times("max", share_equal=1.0, share_min=0.0))
    objective.check()
    rows = rows_of(random(0, SHAPE), random(1, SHAPE))

    @jax.jit
    def see(step):
        """What the objective gives, and the states that the network is asked about."""
        seen = []

        def net(queries):
            seen.append(queries[0].x_t)
            return tuple(Output(jnp.zeros_like(q.x_t)) for q in queries)

        return *objective({"online": net}, rows, step, jax.random.key(0)), seen[-1]

    states = []
    for step in (0, 400):
        losses, metrics, x_t = see(jnp.int32(step))
        states.append(x_t)
        np.testing.assert_allclose(losses, ((x_t - rows.x) ** 2).mean((1, 2, 3)), rtol=1e-10)
        assert (metrics["t"] == 1).all() and (metrics["r"] == 1).all()
    assert not np.isclose(states[0], rows.noise).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(states[1], rows.noise)


def test_one_step_of_the_distilled_network_is_the_sample(x64):
    """F = ε − x̂(ε) at T_max has no loss on pairs, for every transport."""
    assert "max" in DISTRIBUTIONS
    x, noise = random(0, SHAPE), random(1, SHAPE)
    for make in TRANSPORTS.values():
        transport = make()
        objective = unweighted(transport, Times("max", share_equal=1.0, share_min=0.0))
        objective.check()
        t = transport.T_max * jnp.ones((SHAPE[0], 1, 1, 1))
        F = transport.alpha_hat(t) * x + transport.sigma_hat(t) * noise

        def net(queries, F=F):
            return tuple(Output(F) for _ in queries)

        losses, _ = objective({"online": net}, rows_of(x, noise), jnp.int32(0), jax.random.key(0))
        assert losses.max() < 1e-20
