"""A correlated Gaussian under a linear measurement: its exact networks, and its posterior in closed form."""

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.transitions import jump
from tim_jax.transitions.sampling import steering
from tim_jax.transitions.sampling.noise import image_keys, start_noise
from tim_jax.transitions.sampling.planning import make_plan, padded, time_grid
from tim_jax.transitions.sampling.sampler import sample
from tim_jax.types import Output

SHAPE = (2, 2, 1)
MEAN = np.array([0.3, -0.2, 0.1, 0.4])
# Neighbours are correlated: what is measured of one says something of the others.
COVARIANCE = 0.5**2 * 0.8 ** np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
OPERATOR = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.5**0.5, 0.5**0.5, 0.0]])  # of singular values 1
MEASURED = OPERATOR @ (MEAN + np.array([0.6, -0.1, -0.5, -0.4]))
VALUES, VECTORS = np.linalg.eigh(COVARIANCE)


def posterior(noise=0.0):
    """Mean (4,) and covariance (4, 4) given the measurement, of that much noise."""
    gain = COVARIANCE @ OPERATOR.T @ np.linalg.inv(OPERATOR @ COVARIANCE @ OPERATOR.T + noise**2 * np.eye(2))
    return MEAN + gain @ (MEASURED - OPERATOR @ MEAN), COVARIANCE - gain @ OPERATOR @ COVARIANCE


def net_of(transport):
    """The exact F(x, t, r) of the Gaussian, for transports whose networks see the time itself."""

    def F(x, t, r):
        z = (x.reshape(len(x), 4) - jump.expand(transport.alpha(t), x.reshape(len(x), 4)) * MEAN[None]) @ VECTORS
        alpha, sigma = transport.alpha(t)[:, None], transport.sigma(t)[:, None]
        variance = alpha**2 * VALUES[None] + sigma**2
        data = MEAN[None] + (alpha * VALUES[None] / variance * z) @ VECTORS.T
        noise = (sigma / variance * z) @ VECTORS.T
        at_once = transport.alpha_hat(t)[:, None] * data + transport.sigma_hat(t)[:, None] * noise
        alpha_r, sigma_r = transport.alpha(r)[:, None], transport.sigma(r)[:, None]
        there = alpha_r * MEAN[None] + (jnp.sqrt((alpha_r**2 * VALUES[None] + sigma_r**2) / variance) * z) @ VECTORS.T
        B = jump.coefficient_B(transport, t, r)[:, None]
        flat = x.reshape(len(x), 4)
        jumped = (there - jump.coefficient_A(transport, t, r)[:, None] * flat) / jnp.where(B == 0, 1.0, B)
        return jnp.where((t == r)[:, None], at_once, jumped).reshape(x.shape)

    return lambda queries: tuple(Output(F(q.x_t, q.t, q.r)) for q in queries)


def residual(x):
    return x.reshape(len(x), 4) @ OPERATOR.T - MEASURED[None]


def steered(transport, sampling, steps, count=4096):
    """{steps: samples (count, 4)}, steered as `sampling.steering` says, by one program."""
    keys = image_keys(0, jnp.arange(count))
    x = float(transport.sigma(jnp.asarray(transport.T_max))) * start_noise(keys, SHAPE)
    steer = steering.of_residual(sampling.steering, residual) if sampling.steering.active else None
    net = net_of(transport)
    run = jax.jit(lambda plan, x, n: sample(net, plan, x, {}, {}, keys, count=n, steer=steer))
    plans = {n: make_plan(transport, time_grid(transport, n, sampling), sampling) for n in steps}
    return {n: np.asarray(run(padded(plan), x, len(plan.t))).reshape(count, 4) for n, plan in plans.items()}


def errors(samples):
    """How far mean and covariance are from the posterior's, where those of the prior are 1 away; and the miss (RMS)."""
    mean, covariance = posterior()
    off = np.linalg.norm(samples.mean(0) - mean) / np.linalg.norm(MEAN - mean)
    spread = np.linalg.norm(np.cov(samples.T) - covariance) / np.linalg.norm(COVARIANCE - covariance)
    return off, spread, np.sqrt(np.mean((samples @ OPERATOR.T - MEASURED) ** 2))
