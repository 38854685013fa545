"""Free plans: changes of 0 change nothing, structure stays, gradients are right, and what cannot be is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tim_jax.transitions import SAMPLERS, TRANSPORTS
from tim_jax.transitions.gaussian import Gaussian
from tim_jax.transitions.sampling.learned import Changes, changed, end_states, family, unchanged
from tim_jax.transitions.sampling.planning import ends_of_steps, evaluations, make_plan, plan_in_time, time_grid
from tim_jax.transitions.sampling.plans import host_transport
from tim_jax.transitions.sampling.settings import LearnedPlans, Sampling
from tim_jax.types import Output

STEPS = 4
OT_FM = TRANSPORTS["ot_fm"]()


def family_of(sampler, transport=OT_FM, steps=STEPS):
    sampling = Sampling(sampler=sampler, grid="edm")
    plan = plan_in_time(transport, time_grid(transport, steps, sampling), sampling)
    return family(plan, transport.T_min, SAMPLERS[sampler].evaluations)


def random_changes(of, size=0.3):
    rng = np.random.default_rng(0)
    return Changes(*(size * rng.standard_normal(part.shape) for part in unchanged(of)))


def noisy(sampler):
    return plan_in_time(OT_FM, time_grid(OT_FM, STEPS), Sampling(sampler=sampler)).c.any()


EVERY = pytest.mark.parametrize(
    "sampler", [name for name, one in SAMPLERS.items() if not noisy(name) and not one.per_image]
)


@EVERY
@pytest.mark.parametrize("name", TRANSPORTS)
def test_changes_of_0_are_the_plan_that_was_begun_from_to_the_last_bit(name, sampler):
    of = family_of(sampler, TRANSPORTS[name]())
    for found, expected in zip(changed(of, unchanged(of)), of.start, strict=True):
        np.testing.assert_array_equal(found, expected)


@EVERY
def test_the_structure_stays(sampler):
    """Times in their order between the same ends, equal ones equal; weights of 0 that the sampler never has."""
    of = family_of(sampler)
    plan, start = changed(of, random_changes(of)), of.start
    before, after = (np.concatenate([each.t, each.s, [OT_FM.T_min]]) for each in (start, plan))
    assert (np.sign(np.subtract.outer(before, before)) == np.sign(np.subtract.outer(after, after))).all()
    assert after.max() == before.max() and after.min() == before.min()
    for old, new in ((start.a, plan.a), (start.b, plan.b)):
        assert not new[np.triu_indices(len(new), 1, new.shape[1])].any(), "there is nothing before the first"
        assert ((new != 0) | (old == 0)).all()
    assert (plan.guided == start.guided).all() and not plan.c.any()
    if len(np.unique(before)) > 2:
        assert (before != after).any()


def test_points_at_once_stay_independent_of_one_another():
    """Each is reached from the first state and slope of its step."""
    of = family_of("epd_3")
    plan = changed(of, random_changes(of))
    for weights in (plan.a, plan.b):
        for stage in range(3):
            assert (np.nonzero(weights[stage::4].any(0))[0] == stage).all()
    assert (plan.b[3::4, :3] != 0).all() and (plan.a[3::4, 3] != 0).all()


def test_all_terms_of_a_multistep_sampler_are_free():
    of = family_of("dpm_solver_3m", steps=6)
    known = np.arange(6)[:, None] >= np.arange(3)
    assert (of.start.b[known] == 0).any(), "steps of a lower order"
    np.testing.assert_array_equal(of.b > 0, known)
    np.testing.assert_array_equal(of.a > 0, known)


def net(queries):
    flow = Gaussian(OT_FM, 0.4, 0.6)
    return tuple(Output(jnp.tanh(flow.F(q.x_t, q.t, q.r)) + q.condition[:, None] * q.x_t) for q in queries)


@pytest.mark.parametrize("sampler", ["flow_map", "epd_2"])
def test_the_gradient_is_that_of_differences(sampler, x64):
    of = family_of(sampler)
    of = of._replace(start=of.start._replace(guided=np.arange(len(of.start.t)) % 2 == 0))
    x, condition = jnp.linspace(-2, 2, 10).reshape(5, 2), jnp.linspace(0, 0.3, 5)
    expected = jnp.sin(x)

    def loss(flat):
        gaps, a, b = jnp.split(flat, [len(of.times) - 1, len(of.times) - 1 + of.a.size])
        plan = changed(of, Changes(gaps, a.reshape(of.a.shape), b.reshape(of.b.shape)), jnp)
        return jnp.mean((end_states(net, OT_FM, plan, x, condition, 0 * condition, 1.5) - expected) ** 2)

    at = jnp.concatenate([part.ravel() for part in random_changes(of, 0.1)])
    compiled = jax.jit(jax.value_and_grad(loss))
    value, gradient = compiled(at)
    ways = 1e-5 * np.eye(len(at))
    differences = [float(compiled(at + way)[0] - compiled(at - way)[0]) / 2e-5 for way in ways]
    assert gradient.dtype == np.float64 and np.abs(gradient).max() > 0.01
    np.testing.assert_allclose(gradient, differences, atol=1e-8)
    plan = changed(of, Changes(*(np.asarray(part) for part in random_changes(of, 0.1))))
    ends = end_states(net, OT_FM, plan, x, condition, 0 * condition, 1.5)
    np.testing.assert_allclose(jnp.mean((ends - expected) ** 2), value, rtol=1e-12)


def learned(**settings):
    """Settings with plans of two and three steps for one of them, and the plan of two."""
    sampling = Sampling(sampler="heun", guidance=2.0, guidance_high=0.6)
    plan = plan_in_time(OT_FM, time_grid(OT_FM, 2), sampling)
    of = family(plan, OT_FM.T_min, 2)
    plan = changed(of, random_changes(of))
    known = LearnedPlans({2: plan, 3: plan}, sampling.depended_on())
    return dataclasses.replace(sampling, plan="learned", learned=known, **settings), plan


def test_a_learned_plan_is_taken():
    sampling, plan = learned()
    times = time_grid(OT_FM, 2, sampling)
    assert times[0] == 1 and times[-1] == 0 and 0 < times[1] < 1 and times[1] != 0.5
    found = make_plan(OT_FM, times, sampling)
    c_noise = host_transport(OT_FM).c_noise
    for part, expected in zip(found, plan._replace(t=c_noise(plan.t), s=c_noise(plan.s)), strict=True):
        np.testing.assert_array_equal(part, expected)
    assert evaluations(OT_FM, 2, sampling) == 4 + plan.guided.sum() == 7
    assert ends_of_steps(found, 2, sampling).tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"guidance": 3.0}, "sampling.guidance is 3.0; it must be 2.0"),
        ({"guidance": 1.0}, "sampling.guidance is 1.0; it must be 2.0"),
        ({"guidance_high": 0.5}, "sampling.guidance_high is 0.5; it must be 0.6"),
        ({"exclusive_ends": True}, "sampling.exclusive_ends is True; it must be False"),
        ({"sampler": "euler"}, "sampling.sampler is 'euler'; it must be 'heun'"),
        ({"grid": "edm"}, "sampling.grid is 'edm'; it must be 'uniform'"),
        ({"ema": "online"}, "sampling.ema is 'online'; it must be 'slow'"),
    ],
)
def test_other_settings_than_those_it_was_learned_with_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        time_grid(OT_FM, 2, learned(**settings)[0])


def test_other_times_than_those_that_were_learned_are_refused():
    sampling, _ = learned()
    with pytest.raises(ValueError, match="learned for 4 steps, and has been for 2, 3: .*--kind=learned --steps=4"):
        time_grid(OT_FM, 4, sampling)
    with pytest.raises(ValueError, match="no number of"):
        time_grid(OT_FM, 4, dataclasses.replace(sampling, learned=None))
    with pytest.raises(ValueError, match="start at 0.5"):
        time_grid(OT_FM, 2, sampling, start=0.5)
    for times in (time_grid(OT_FM, 2, sampling)[::-1], time_grid(OT_FM, 2)):
        with pytest.raises(ValueError, match="sampling.plan is 'learned'; it must be 'sampler' for times other"):
            make_plan(OT_FM, times, sampling)
    with pytest.raises(ValueError, match="sampling.stochasticity is 0.5; it must be 0"):
        dataclasses.replace(sampling, sampler="flow_map", stochasticity=0.5).check()
    noisy = plan_in_time(OT_FM, time_grid(OT_FM, 4), Sampling(sampler="sde"))
    with pytest.raises(ValueError, match="start.c is up to"):
        family(noisy, OT_FM.T_min, 1)
