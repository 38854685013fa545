"""Weights and evaluations of each image's own: A-FloPS and SADA, counted as they are made, whatever the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.solving import mixture, solve
from tests.transitions.test_orders import plan_of, times
from tim_jax.transitions import SAMPLERS, TRANSPORTS
from tim_jax.transitions.sampling.learned import family
from tim_jax.transitions.sampling.noise import image_keys, start_noise
from tim_jax.transitions.sampling.planning import evaluations, make_plan, padded, time_grid
from tim_jax.transitions.sampling.plans import host_transport
from tim_jax.transitions.sampling.sampler import sample, sample_and_count
from tim_jax.transitions.sampling.settings import Sampling
from tim_jax.types import Output

OT_FM, VP = TRANSPORTS["ot_fm"](), TRANSPORTS["vp"]()
PER_IMAGE = [name for name, sampler in SAMPLERS.items() if sampler.per_image]
KEYS = image_keys(0, jnp.arange(4))


def as_net(F):
    """(x, t) → F, t (B, 1, …), as a network."""
    return lambda queries: tuple(Output(F(q.x_t, q.t.reshape(-1, *[1] * (q.x_t.ndim - 1)))) for q in queries)


def of_mixture(x, t, mean=0.7, variance=0.09):
    """F for data ½N(mean, variance) + ½N(−mean, variance) of VP, whose F is ε̂."""
    alpha, sigma = VP.alpha(t), VP.sigma(t)
    total = alpha**2 * variance + sigma**2
    x_hat = (alpha * variance * x + sigma**2 * mean * jnp.tanh(alpha * mean * x / total)) / total
    return VP.alpha_hat(t) * x_hat + VP.sigma_hat(t) * (x - alpha * x_hat) / sigma


@pytest.mark.parametrize("sampler", PER_IMAGE)
def test_the_order(sampler, x64):
    """On a mixture; of images, as a single number may turn around on its way, where it has no rate."""
    x = float(host_transport(VP).sigma(times(VP, 1)[0])) * start_noise(KEYS, (8, 8, 1))
    plan = plan_of(VP, 600, Sampling(sampler="dpm_solver_3s"))
    exact = solve(plan, mixture(plan, host_transport(VP), 0.7, 0.09), np.asarray(x))[-1]
    run = jax.jit(lambda plan, count: sample(as_net(of_mixture), plan, x, None, None, KEYS, count=count))
    plans = [plan_of(VP, steps, Sampling(sampler=sampler)) for steps in (60, 120)]
    coarse, fine = (np.abs(run(padded(plan), len(plan.t)) - exact).max() for plan in plans)
    found = np.log2(coarse / fine)
    print(sampler, found)
    assert abs(found - SAMPLERS[sampler].order) < 0.15


def trajectory(sampler, F, x, steps=5):
    plan = make_plan(OT_FM, time_grid(OT_FM, steps), Sampling(sampler=sampler))
    drawn = jax.jit(lambda plan, x: sample(as_net(F), plan, x, None, None, KEYS[: len(x)], trajectory=True))
    return drawn(plan, x)


def test_a_flops_is_exact_where_the_slope_is_linear_in_the_state(x64):
    """From the second step on, as the first has no other to tell a rate from: at another rate for each image."""
    x, rate = jnp.linspace(-1, 2, 12).reshape(3, 2, 2), jnp.array([0.7, -1.3, 4.0]).reshape(3, 1, 1)
    states = trajectory("a_flops", lambda x, t: rate * x + 0.3, x)
    fixed = -0.3 / rate
    for n, state in enumerate(states[1:]):
        np.testing.assert_allclose(state, fixed + (states[1] - fixed) * jnp.exp(-0.2 * n * rate), atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_image_that_stood_still_takes_eulers_step(dtype, x64):
    def F(x, t):
        return jnp.where(t > 0.9, 0, 3 * t + x)

    x = jnp.linspace(-1, 2, 4, dtype=dtype).reshape(1, 4)
    for start in (x, 0 * x):
        a_flops, euler = (trajectory(sampler, F, start) for sampler in ("a_flops", "euler"))
        assert a_flops.dtype == dtype
        np.testing.assert_allclose(a_flops[:3], euler[:3], atol=4 * np.finfo(dtype).eps)
        assert np.isfinite(a_flops).all() and (a_flops[3:] != euler[3:]).any()


def test_no_deviation_grows_more_than_e_to_the_2_in_a_step():
    states = trajectory("a_flops", lambda x, t: -30 * x, jnp.ones((1, 4)))
    np.testing.assert_allclose(states, trajectory("euler", lambda x, t: -30 * x, jnp.ones((1, 4))), rtol=1e-5)


def test_evaluations_are_counted_as_they_are_made():
    """Alone an image takes as many calls as it needs; in a batch one wherever any does. Guided ones count twice."""
    sampling = Sampling(sampler="sada", guidance=2.0, guidance_high=0.5)
    plan, noise = make_plan(OT_FM, time_grid(OT_FM, 12, sampling), sampling), start_noise(KEYS, (3, 3, 1))
    calls = []

    def net(queries):
        calls.append(len(queries))
        return as_net(lambda x, t: jnp.tanh(3 * x * t) + x)(queries)

    def drawn(x, keys):
        calls.clear()
        with jax.disable_jit():
            return *sample_and_count(net, plan, x, None, None, keys, 2.0), list(calls)

    alone = [drawn(noise[i : i + 1], KEYS[i : i + 1]) for i in range(4)]
    assert [made.tolist() for _, made, _ in alone] == [[sum(calls)] for *_, calls in alone]
    images, made, calls_together = drawn(noise, KEYS)
    assert made.tolist() == [sum(calls) for *_, calls in alone] and len(set(made.tolist())) > 1
    assert max(made.tolist()) <= sum(calls_together) <= evaluations(OT_FM, 12, sampling)
    assert max(made.tolist()) < evaluations(OT_FM, 12, sampling)
    np.testing.assert_allclose(images, jnp.concatenate([x for x, *_ in alone]), atol=1e-6)
    compiled = jax.jit(lambda plan, count: sample_and_count(net, plan, noise, None, None, KEYS, 2.0, count=count))
    found, counted = compiled(padded(plan), len(plan.t))
    np.testing.assert_allclose(found, images, atol=1e-5)
    assert counted.tolist() == made.tolist()


def test_a_plan_without_a_rule_is_counted_beforehand():
    sampling = Sampling(sampler="heun", guidance=2.0, guidance_high=0.5)
    plan = make_plan(OT_FM, time_grid(OT_FM, 3), sampling)
    _, made = sample_and_count(
        as_net(lambda x, t: x), padded(plan), jnp.ones((4, 2)), None, None, KEYS, 2.0, count=len(plan.t)
    )
    assert made.tolist() == 4 * [evaluations(OT_FM, 3, sampling)]


@pytest.mark.parametrize("sampler", PER_IMAGE)
def test_neither_in_sweeps_nor_learned(sampler):
    with pytest.raises(ValueError, match="^sampling.parallel is 4; it must be 0 with sampling.sampler"):
        Sampling(sampler=sampler, parallel=4).check()
    with pytest.raises(ValueError, match=f"^sampling.sampler is '{sampler}'; it must be one with the same weights"):
        Sampling(sampler=sampler, plan="learned").check()
    plan = make_plan(OT_FM, time_grid(OT_FM, 4), Sampling(sampler=sampler))
    with pytest.raises(ValueError, match="start.rule is given"):
        family(plan, 0.0, 1)
