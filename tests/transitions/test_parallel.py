"""Parallel-in-time sampling gives what sequential sampling gives, in fewer sweeps than there are steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.sampling.noise import image_keys
from tim_jax.transitions.sampling.parallel import sample_parallel
from tim_jax.transitions.sampling.planning import make_plan, time_grid
from tim_jax.transitions.sampling.sampler import sample
from tim_jax.transitions.sampling.settings import Sampling
from tim_jax.types import Output

TRANSPORT = TRANSPORTS["ot_fm"]()
# One for each shape of a plan: memory, evaluations a step, noise in the first state and after each.
SHAPES = ("flow_map", "unipc_3", "er_sde_2")
OTHER_SHAPES = ("heun", "dpm_solver_3s", "dpm_solver_3m", "pseudo_corrector", "sde_heun")


def net(queries):
    """A network that is not linear, and knows times and condition."""
    return tuple(
        Output(jnp.sin(2 * q.x_t) * jnp.cos(q.t - q.r / 2)[:, None] + q.condition[:, None] * q.x_t) for q in queries
    )


def both(sampling, steps, window, tolerance, guidance=1.0):
    plan = make_plan(TRANSPORT, time_grid(TRANSPORT, steps), sampling)
    keys = image_keys(3, jnp.arange(5))
    x = jax.random.normal(jax.random.key(1), (5, 6), jnp.result_type(float))
    condition, null = jnp.linspace(0, 1, 5), jnp.zeros(5)
    arguments = (plan, x, condition, null, keys, jnp.asarray(guidance))
    sweep = jax.jit(functools.partial(sample_parallel, net, window=window, tolerance=tolerance))
    found, sweeps = sweep(*arguments)
    return jax.jit(functools.partial(sample, net, trajectory=True))(*arguments), found, int(sweeps)


@pytest.mark.parametrize("sampler", [*SHAPES, *(pytest.param(s, marks=pytest.mark.slow) for s in OTHER_SHAPES)])
def test_the_result_is_that_of_sequential_sampling(sampler, x64):
    sampling = Sampling(sampler=sampler, guidance=1.5, guidance_low=0.2, guidance_high=0.7)
    expected, found, _ = both(sampling, 8, 5, 0.0, guidance=1.5)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [32, pytest.param(64, marks=pytest.mark.slow)])
def test_few_sweeps_are_needed(steps, x64):
    for tolerance in (1e-2, 1e-4, 1e-6):
        expected, found, sweeps = both(Sampling(sampler="euler"), steps, steps, tolerance)
        print(steps, tolerance, sweeps, np.abs(found - expected).max())
        assert sweeps < steps / 2
        assert np.sqrt(np.mean((found - expected) ** 2, axis=2)).max() < 10 * tolerance


def test_one_at_a_time_is_sequential(x64):
    expected, found, sweeps = both(Sampling(sampler="heun"), 4, 1, 1e-3)
    assert sweeps == 8
    np.testing.assert_allclose(found, expected, atol=1e-12)
