"""Paths with a latent variable γ z: the pair that stands for state and velocity, and Gaussians in closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tim_jax.transitions import OBJECTIVES, TRANSPORTS, generate
from tim_jax.transitions.jump import coefficient_A, coefficient_B, interpolate, prediction_target, velocity
from tim_jax.transitions.latent import gamma, pair_of, with_latent
from tim_jax.transitions.sampling.settings import Sampling
from tim_jax.types import Examples, Output

A, COUNT = 0.5, 40_000  # standard deviation of the data


def of(name, c=0.7):
    return dataclasses.replace(TRANSPORTS[name](), gamma=c)


def moments(transport, t):
    """Variance of x_t, and covariance of x_t with ẋ_t, which is half of the variance's derivative in t."""

    def variance(t):
        return (transport.alpha(t) * A) ** 2 + transport.sigma(t) ** 2 + gamma(transport, t)[0] ** 2

    V, rate = jax.jvp(variance, (t,), (jnp.ones_like(t),))
    return V, rate / 2


def examples():
    x, noise = jax.random.normal(jax.random.key(0), (2, COUNT, 1))
    label = {"label": jnp.zeros(COUNT, int)}
    return Examples(A * x, noise, label, label, jnp.zeros(COUNT, bool))


def test_gamma_is_that_of_the_paper_and_its_rate_the_derivative(x64):
    transport, u = of("trigflow", 1.0), jnp.array([0.1, 0.5, 0.8])
    t = transport.T_min + (transport.T_max - transport.T_min) * u
    size, rate = gamma(transport, t)
    np.testing.assert_allclose(size, np.sqrt(2 * u * (1 - u)), rtol=1e-9)
    np.testing.assert_allclose(rate, jax.vmap(jax.grad(lambda t: gamma(transport, t)[0]))(t), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", TRANSPORTS)
def test_the_pair_has_the_state_and_the_velocity(name, x64):
    transport = of(name)
    x_t, v_t = jax.random.normal(jax.random.key(0), (2, 5, 3))
    t = transport.time_of_level(jnp.array([0.1, 0.3, 0.5, 0.7, 0.9]))
    pair = pair_of(transport, x_t, v_t, t)
    np.testing.assert_allclose(interpolate(transport, *pair, t), x_t, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(velocity(transport, *pair, t), v_t, rtol=1e-6, atol=1e-8)


def test_the_velocity_of_gaussians(x64):
    """E[ẋ_t | x_t] of the pair is what the covariances say, for OT-FM (tγγ' and the rest by hand)."""
    transport, t = of("ot_fm"), 0.3
    found = with_latent(transport, examples(), jnp.full(COUNT, t), jax.random.key(5))
    x_t = interpolate(transport, found.x, found.noise, jnp.full(COUNT, t))
    v_t = prediction_target(transport, found.x, found.noise, jnp.full(COUNT, t))
    V = (1 - t) ** 2 * A**2 + t**2 + 0.7**2 * 2 * t * (1 - t)
    slope = (t - (1 - t) * A**2 + 0.7**2 * (1 - 2 * t)) / V
    np.testing.assert_allclose(x_t.var(), V, rtol=0.03)
    np.testing.assert_allclose((v_t * x_t).mean() / V, slope, atol=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective, name",
    [
        ("tim", "trigflow"),
        *(
            pytest.param(*case, marks=pytest.mark.nightly)
            for case in [
                ("flow_matching", "ot_fm"),
                ("tim", "ot_fm"),
                ("mean_flow", "ot_fm"),
                ("mean_flow", "trigflow"),
            ]
        ),
    ],
)
def test_the_gradient_vanishes_at_the_flow_map_of_gaussians(objective, name, x64):
    """x_r = x_t √(V_r/V_t), in an average over many examples; without γ in it the flow map is another one."""
    transport = of(name)
    objective = dataclasses.replace(OBJECTIVES[objective](transport), direction="none")
    objective = dataclasses.replace(objective, adaptive=dataclasses.replace(objective.adaptive, power=0.0))
    t = transport.T_min + (transport.T_max - transport.T_min) * jnp.linspace(0.3, 0.9, COUNT)
    moving = ~objective.times.assign(COUNT)[0]
    r = jnp.where(moving, 0.6 * t, t)

    def loss(scale, known):
        def net(queries):
            def F(q):
                V_t, cov = moments(known, q.t)
                V_r, _ = moments(known, q.r)
                equal = q.t == q.r
                B = jnp.where(equal, 1.0, coefficient_B(known, q.t, q.r))
                jumped = (jnp.sqrt(V_r / V_t) - coefficient_A(known, q.t, q.r)) / B
                x_hat, noise_hat = pair_of(known, jnp.ones_like(q.t), cov / V_t, q.t)
                here = prediction_target(known, x_hat, noise_hat, q.t)
                return Output(scale * jnp.where(equal, here, jumped)[:, None] * q.x_t)

            return tuple(map(F, queries))

        nets = {"online": net, "slow": net}
        losses, _ = objective.loss(nets, examples(), t, r, jnp.asarray(0), jax.random.key(3))
        return losses.mean()

    right = abs(float(jax.grad(loss)(1.0, transport)))
    wrong = abs(float(jax.grad(loss)(1.0, dataclasses.replace(transport, gamma=0.0))))
    assert right < 0.02 < 0.2 * wrong + 0.02 and right < 0.2 * wrong


def test_many_steps_of_euler_bring_the_noise_to_the_law_of_data(x64):
    transport = of("ot_fm", 1.0)
    objective = OBJECTIVES["flow_matching"](transport)

    def net(x, t, r, condition=None):
        V, cov = moments(transport, t)
        return (cov / V)[:, None] * x

    noise = jax.random.normal(jax.random.key(1), (4000, 1))
    samples = generate(objective, net, noise, 512, sampling=Sampling(sampler="euler"))
    np.testing.assert_allclose(samples.std(), A * noise.std(), rtol=0.02)
