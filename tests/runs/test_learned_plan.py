"""Plans learned for the exact map of a Gaussian: far nearer to its samples, of other noise as well."""

import dataclasses

import numpy as np
import pytest

from tests.runs.test_generation import make_run
from tim_jax.runs.generation import Generator
from tim_jax.runs.learned_plan import begin_from, learn
from tim_jax.transitions.sampling.planning import plan_in_time, time_grid
from tim_jax.transitions.sampling.settings import Sampling

LABELS = np.arange(32) % 10


def learned(steps, iterations, name="ot_fm", **sampling):
    run = dataclasses.replace(make_run(transport__name=name), sampling=Sampling(**sampling))
    run = begin_from(run, steps)
    return run, learn(Generator(run, 16), {}, steps, labels=LABELS, iterations=iterations, candidates=9)


@pytest.mark.slow
def test_few_steps_of_euler_lead_where_many_small_ones_do():
    run, found = learned([4, 2], 200, sampler="euler")
    assert [one.steps for one in found] == [2, 4]
    for one in found:
        assert one.helps and one.after < one.before / 1000
        assert (np.diff(one.plan.t) < 0).all() and one.plan.t[0] == 1
    _, (alone,) = learned([2], 200, sampler="euler")
    for part, same in zip(alone.plan, found[0].plan, strict=True):
        np.testing.assert_array_equal(part, same, err_msg="it depends on what is learned beside")


def test_without_an_iteration_it_is_the_samplers_own_plan():
    run, (found,) = learned([3], 0, sampler="dpm_solver_2m")
    own = plan_in_time(run.transport, time_grid(run.transport, 3), run.sampling)
    for part, expected in zip(found.plan, own, strict=True):
        np.testing.assert_array_equal(part, expected)
    assert found.before == found.after > 0 and not found.helps


def test_samplers_with_weights_of_each_images_own_are_refused():
    run = dataclasses.replace(make_run(), sampling=Sampling(sampler="a_flops"))
    with pytest.raises(ValueError, match="^sampling.sampler is 'a_flops'; it must be one with the same weights"):
        begin_from(run, [4])


@pytest.mark.parametrize("settings", [{"sampler": "er_sde_2"}, {"sampler": "consistency"}, {"stochasticity": 0.5}])
def test_samplers_with_fresh_noise_are_refused(settings):
    run = dataclasses.replace(make_run(), sampling=Sampling(**settings))
    for steps in ([1], [4]):
        with pytest.raises(ValueError, match="must draw no noise on the way"):
            begin_from(run, steps)
