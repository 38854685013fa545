"""Steering: the nearest image that agrees, images that do not see one another, and any transport, sampler and steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tim_jax.transitions import SAMPLERS, TRANSPORTS
from tim_jax.transitions.operators import OPERATORS
from tim_jax.transitions.sampling.noise import image_keys
from tim_jax.transitions.sampling.planning import evaluations, make_plan, padded, time_grid
from tim_jax.transitions.sampling.sampler import sample_and_count
from tim_jax.transitions.sampling.settings import Sampling
from tim_jax.transitions.sampling.steering import Steer, Steering, consistent, of_residual
from tim_jax.types import Output

RNG = np.random.default_rng(0)
W1, W2 = RNG.normal(0, 0.3, (16, 24)), RNG.normal(0, 0.3, (24, 16))
SHAPE, B = (4, 4, 1), 3
MEASURED = jnp.asarray(RNG.normal(0, 0.5, (B, 2, 2, 1)))
STEERABLE = [name for name, sampler in SAMPLERS.items() if sampler.steerable]


def net(queries):
    """Neither linear nor any model's own, and of a scale that transports' states have."""
    return tuple(
        Output((jnp.tanh(q.x_t.reshape(-1, 16) @ W1 + q.t[:, None]) @ W2).reshape(q.x_t.shape)) for q in queries
    )


def pooled(x, y=MEASURED):
    return 2 * (OPERATORS["super_resolution"].measure(x, 2) - y)


def draw(sampling, steps=3, transport="ot_fm", images=slice(None), start=1.0, scale=None):
    """Samples and evaluations, those of some images alone."""
    transport = TRANSPORTS[transport]()
    plan = make_plan(transport, time_grid(transport, steps, sampling), sampling)
    keys = image_keys(1, jnp.arange(B))[images]
    x = start * jnp.asarray(np.random.default_rng(1).normal(0, 1, (B, *SHAPE)))[images]
    steer = of_residual(sampling.steering, functools.partial(pooled, y=MEASURED[images]), scale)
    return jax.jit(lambda plan, x: sample_and_count(net, plan, x, {}, {}, keys, count=len(plan.t), steer=steer))(
        plan, x
    )


@pytest.mark.parametrize("name", OPERATORS)
def test_the_nearest_image_that_agrees(x64, name):
    operator, shape = OPERATORS[name], (8, 8, 3)
    numbers = {"gaussian_blur": (0.4,), "motion_blur": (1.5, 0)}.get(name, operator.numbers)
    measure = lambda x: operator.measure(x, *numbers)  # noqa: E731
    x, truth = jnp.asarray(RNG.normal(0, 1, (2, 2, *shape)))
    iterations = 3 if "blur" in name else 1
    found = jax.jit(lambda x: consistent(lambda x: measure(x) - measure(truth), x, iterations))(x)
    np.testing.assert_allclose(measure(found), measure(truth), atol=1e-5 if "blur" in name else 1e-12)
    if name == "colour_statistics":
        return  # exact at once as well, since deviations are scaled
    A = np.asarray(jax.jit(jax.jacobian(lambda x: measure(x[None])[0]))(x[0])).reshape(-1, np.prod(shape))
    off = np.asarray(found - x).reshape(2, -1)
    np.testing.assert_allclose(off @ np.linalg.pinv(A) @ A, off, atol=1e-6)  # no way that the measurement does not ask


def test_what_is_not_linear_takes_some_iterations(x64):
    def measure(x):
        means = OPERATORS["super_resolution"].measure(x, 2)
        return means + 0.1 * means**3

    x, truth = jnp.asarray(RNG.normal(0, 1, (2, 2, 8, 8, 3)))

    @functools.partial(jax.jit, static_argnums=1)
    def miss(x, iterations):
        found = consistent(lambda x: measure(x) - measure(truth), x, iterations)
        return jnp.abs(measure(found) - measure(truth)).max()

    off = [miss(x, n) for n in (1, 5)]
    assert off[1] < 1e-6 < off[0]


@pytest.mark.parametrize("method, loss", [("flowchef", "squared"), ("dps", "norm"), ("resample", "squared")])
def test_an_image_does_not_depend_on_its_batch(x64, method, loss):
    sampling = Sampling(steering=Steering("super_resolution:2", method, 0.5, loss, iterations=2))
    whole = draw(sampling)[0]
    np.testing.assert_allclose(draw(sampling, images=slice(1, 2))[0], whole[1:2], atol=1e-12)


@pytest.mark.parametrize(
    "transport",
    [name if name in ("ot_fm", "edm") else pytest.param(name, marks=pytest.mark.slow) for name in TRANSPORTS],
)
def test_hard_consistency_holds_at_the_end_for_any_transport(x64, transport):
    sampling = Sampling(sampler="euler", steering=Steering("super_resolution:2", "resample"))
    made = TRANSPORTS[transport]()
    x, _ = draw(sampling, 2, transport, start=float(made.sigma(made.T_max)))
    np.testing.assert_allclose(pooled(x / made.alpha(jnp.asarray(made.T_min))), 0, atol=1e-9)


@pytest.mark.parametrize(
    "sampler", [name if name == "dpm_solver_2m" else pytest.param(name, marks=pytest.mark.slow) for name in STEERABLE]
)
def test_every_sampler_that_can_be_steered_comes_nearer(x64, sampler):
    def miss(steering):
        return float(jnp.abs(pooled(draw(Sampling(sampler=sampler, steering=steering), 4)[0])).mean())

    unsteered = miss(Steering("super_resolution:2", scale=0.0))
    assert miss(Steering("super_resolution:2", "resample")) < 1e-9
    # The last step of length 1 goes all the way, but that of `sde`, which does not end at x̂.
    assert miss(Steering("super_resolution:2", "flowchef")) < (unsteered / 2 if sampler == "sde" else 1e-9)
    assert miss(Steering("super_resolution:2", "dps", 0.5)) < 0.9 * unsteered


@pytest.mark.parametrize("method", ["flowchef", "dps"])
def test_a_scale_of_zero_changes_nothing(x64, method):
    plain = Sampling(steering=Steering())
    plan = make_plan(TRANSPORTS["ot_fm"](), time_grid(TRANSPORTS["ot_fm"](), 3, plain), plain)
    x = jnp.asarray(np.random.default_rng(1).normal(0, 1, (B, *SHAPE)))
    keys = image_keys(1, jnp.arange(B))
    expected, counted = jax.jit(lambda plan, x: sample_and_count(net, plan, x, {}, {}, keys))(plan, x)
    for estimate in ("prediction", "end"):
        found, each = draw(
            Sampling(steering=Steering("super_resolution:2", method, 0.0, estimate=estimate, iterations=2))
        )
        np.testing.assert_allclose(found, expected, atol=1e-12)
        assert (each == counted * (2 if estimate == "prediction" else 3)).all()


def test_evaluations_are_counted_and_padding_changes_nothing(x64):
    transport = TRANSPORTS["ot_fm"]()
    for steering, each in [
        (Steering("greyscale"), 1), (Steering("greyscale", iterations=3), 3), (Steering(iterations=3), 1),
        (Steering("greyscale", estimate="end"), 2), (Steering("greyscale", "resample", iterations=3), 1),
    ]:  # fmt: skip
        assert evaluations(transport, 4, Sampling(steering=steering)) == 4 * each
    sampling = Sampling(steering=Steering("super_resolution:2", "resample"))
    plan = make_plan(transport, time_grid(transport, 3, sampling), sampling)
    x = jnp.asarray(np.random.default_rng(1).normal(0, 1, (B, *SHAPE)))
    steer = of_residual(sampling.steering, pooled)
    keys = image_keys(1, jnp.arange(B))
    drawn = jax.jit(lambda plan, x: sample_and_count(net, plan, x, {}, {}, keys, count=3, steer=steer))
    found, _ = drawn(padded(plan), x)
    np.testing.assert_allclose(found, draw(sampling)[0], atol=1e-12)


def test_a_reward_is_climbed(x64):
    def loss(x):
        return -x.mean((1, 2, 3))

    transport = TRANSPORTS["ot_fm"]()
    means = []
    for scale in (0.0, 5.0):
        sampling = Sampling(steering=Steering("brightness", "dps", scale))
        plan = make_plan(transport, time_grid(transport, 4, sampling), sampling)
        x = jnp.asarray(np.random.default_rng(1).normal(0, 1, (B, *SHAPE)))
        steer, keys = Steer(sampling.steering, loss), image_keys(1, jnp.arange(B))
        drawn = jax.jit(
            lambda plan, x, steer=steer, keys=keys: sample_and_count(net, plan, x, {}, {}, keys, steer=steer)
        )
        means.append(drawn(plan, x)[0].mean())
    assert means[1] > means[0] + 0.3
