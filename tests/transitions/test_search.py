"""Searches: what they find on a Gaussian, where it is known, and that they are plain sampling with one candidate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.solving import solve
from tim_jax.transitions import TRANSPORTS, Sampling, time_grid
from tim_jax.transitions.gaussian import Gaussian
from tim_jax.transitions.sampling import search
from tim_jax.transitions.sampling.planning import plan_in_time
from tim_jax.transitions.sampling.plans import host_transport

B, SHAPE = 4000, (2, 2, 1)
EXPECTED = {2: 0.56419, 4: 1.02938, 8: 1.42360}  # of the largest of so many standard normal numbers
STOCHASTIC = {"sde": {"sampler": "sde"}, "er_sde_1": {"sampler": "er_sde_1"}, "flow_map": {"stochasticity": 1.0}}


def judge(x):
    """Standard normal for standard normal images."""
    return x.reshape(len(x), -1).mean(axis=1) * 2


def noise(number, count=B):
    return np.random.default_rng(number).standard_normal((count, *SHAPE))


@pytest.mark.parametrize("count", EXPECTED)
def test_the_best_of_some_is_the_largest_of_them(count):
    found = search.best_of(noise, judge, count)
    every = np.stack([judge(noise(number)) for number in range(count)])
    np.testing.assert_array_equal(found.rewards, every.max(axis=0))
    np.testing.assert_array_equal(found.candidates, every.argmax(axis=0))
    np.testing.assert_array_equal(found.history, np.maximum.accumulate(every))
    np.testing.assert_array_equal(judge(found.x), found.rewards)
    assert found.rewards.mean() == pytest.approx(EXPECTED[count], abs=0.05)


def test_starts_with_the_whole_radius_are_independent():
    found, best = search.starts(noise, np.copy, judge, 6, radius=1.0), search.best_of(noise, judge, 6)
    np.testing.assert_array_equal(found.history, best.history)
    np.testing.assert_array_equal(found.x, best.x)


def test_starts_climb():
    """Changes of a start stay standard normal, so that its norm does not grow while its reward does."""
    found = search.starts(noise, np.copy, judge, 64, radius=0.5)
    assert (np.diff(found.history, axis=0) >= 0).all()
    assert found.rewards.mean() > search.best_of(noise, judge, 64).rewards.mean() + 0.3
    across = found.x - found.x.mean(axis=(1, 2, 3), keepdims=True)
    assert np.square(across).sum() / (3 * B) == pytest.approx(1, abs=0.05), (
        "what the reward does not see stays as it is"
    )


def case(name, steps, transport="ot_fm", count=B):
    """A plan with fresh noise, and `budget_forcing` along it for data N(0, 1)."""
    transport = TRANSPORTS[transport]()
    sampling, gaussian = Sampling(**STOCHASTIC[name]), Gaussian(transport)
    plan = plan_in_time(transport, time_grid(transport, steps, sampling), sampling)

    @jax.jit
    def F(x, j):
        return gaussian.F(x, jnp.asarray(plan.t)[j], jnp.asarray(plan.s)[j])

    def fresh(index, tried):
        return np.stack([
            np.random.default_rng((i, a, b)).standard_normal(SHAPE) for i, (a, b) in enumerate(zip(index, tried))
        ])  # fmt: skip

    calls = []

    def predict(x, j):
        calls.append(j)
        return np.asarray(F(x, j))

    start = noise(0, count) * float(host_transport(transport).sigma(np.array(transport.T_max)))
    run = functools.partial(search.budget_forcing, transport, plan, predict, fresh, judge)
    return plan, F, fresh, start, run, calls


@pytest.mark.parametrize("name", STOCHASTIC)
def test_budget_forcing_with_one_evaluation_each_is_the_plan(name, x64):
    plan, F, fresh, start, run, calls = case(name, 5, count=6)
    found, n = run(start, 1), len(plan.t)
    drawn = np.stack([fresh(np.full(6, j), np.zeros(6, int)) for j in range(n + 1)])
    expected = solve(plan, lambda x, j: np.asarray(F(x, np.full(6, j))), start, drawn)[-1]
    np.testing.assert_allclose(found.x, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.rewards, judge(expected), rtol=1e-9, atol=1e-12)
    assert len(calls) == n


@pytest.mark.parametrize("name", STOCHASTIC)
def test_budget_forcing_spends_all_and_does_not_depend_on_the_batch(name, x64):
    plan, _, _, start, run, calls = case(name, 5, "vp", count=12)
    found = run(start, 4)
    assert len(calls) == 4 * len(plan.t)
    alone = run(start[:3], 4)
    np.testing.assert_allclose(found.x[:3], alone.x, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found.candidates[:3], alone.candidates)


def test_the_highest_reward_so_far_is_what_a_proposal_must_exceed(x64):
    """By rewards that are written down. State 2 is the first with a choice, and has what the two before it leave."""
    plan, _, _, start, run, calls = case("sde", 5, count=1)
    rewards = iter([1.0, 0.0, 0.2, 0.1, 0.5, 0.4, 2.0, 0.3, 3.0, 0.1, 7.0])
    found = run.func(*run.args[:-1], lambda x: np.array([next(rewards)]), start, 2)
    assert np.ravel(calls).tolist() == [0, 1, 2, 2, 2, 2, 3, 4, 4, 4]
    assert found.candidates.tolist() == [1] and found.rewards.tolist() == [7.0]


def test_budget_forcing_finds_more_than_the_best_of_as_many(x64):
    """In eight steps along an SDE, whose many choices add up, as the paper finds."""
    *_, start, run, _ = case("sde", 8, count=400)
    found = {count: run(start, count).rewards for count in (1, 4)}
    error = found[4].std() / 20
    assert abs(found[1].mean()) < 0.2 and found[4].mean() - 3 * error > EXPECTED[4]


@pytest.mark.parametrize("settings", [{"sampler": "heun"}, {"sampler": "sde_heun"}, {}, {"sampler": "sada"}])
def test_samplers_without_choices_are_refused(settings):
    transport, sampling = TRANSPORTS["ot_fm"](), Sampling(**settings)
    plan = plan_in_time(transport, time_grid(transport, 4, sampling), sampling)
    with pytest.raises(ValueError, match=r"^sampling.sampler is '.*'; it must be one that draws fresh noise"):
        search.check_plan(plan, sampling.sampler)
