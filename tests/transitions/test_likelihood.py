"""Bits per dimension against closed forms: of a Gaussian and of a mixture, over all transports."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tests.helpers.waves import every_transport
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.gaussian import Gaussian
from tim_jax.transitions.jump import expand, prediction_target
from tim_jax.transitions.likelihood import LEVEL, bits_per_dimension, dequantise, log_likelihood, rademacher
from tim_jax.transitions.noise import log_density
from tim_jax.transitions.sampling.noise import image_keys
from tim_jax.types import Output

MEAN, STD = 0.6, 0.25
SHAPE = (200, 2, 2, 1)
D = math.prod(SHAPE[1:])


@dataclasses.dataclass(frozen=True)
class Mixture:
    """½N(mean, std²) + ½N(−mean, std²), elementwise, of images whose numbers have been turned into one another."""

    transport: object
    mean: float
    std: float
    turn: np.ndarray  # (D, D), orthogonal, so that the Jacobian of F is not diagonal

    def F(self, x_t, t):
        t, shape = expand(t, x_t), x_t.shape
        turned = (x_t.reshape(len(x_t), -1) @ self.turn.T).reshape(shape)
        alpha, sigma = self.transport.alpha(t), self.transport.sigma(t)
        total = alpha**2 * self.std**2 + sigma**2
        weight = jnp.tanh(alpha * self.mean * turned / total)
        x = (alpha * self.std**2 * turned + sigma**2 * self.mean * weight) / total
        noise = sigma * (turned - alpha * self.mean * weight) / total
        x, noise = ((part.reshape(len(x_t), -1) @ self.turn).reshape(shape) for part in (x, noise))
        return prediction_target(self.transport, x, noise, t)


def distribution(name, transport):
    """Its F at r = t, samples, and −log₂ p of each of these per dimension at T_min."""
    rng = np.random.default_rng(0)
    normal, sign = rng.standard_normal(SHAPE), rng.choice([-1, 1], SHAPE)
    width = math.hypot(STD, float(transport.sigma(transport.T_min) / transport.alpha(transport.T_min)))
    density = lambda x, mean: scipy.stats.norm.logpdf(x, mean, width)  # noqa: E731
    if name == "gaussian":
        x, gaussian = MEAN + STD * normal, Gaussian(transport, MEAN, STD)
        return lambda x_t, t: gaussian.F(x_t, t, t), x, density(x, MEAN)
    turn = np.linalg.qr(rng.standard_normal((D, D)))[0]
    x = sign * MEAN + STD * normal
    exact = np.logaddexp(density(x, MEAN), density(x, -MEAN)) - math.log(2)
    turned = (x.reshape(len(x), -1) @ turn).reshape(SHAPE)
    return Mixture(transport, MEAN, STD, turn).F, turned, exact


@functools.cache  # of float64, which all of these tests are in
def bits(name, transport, probes, steps=32):
    transport = TRANSPORTS[transport]()
    F, x, exact = distribution(name, transport)
    net = lambda queries: tuple(Output(F(q.x_t, transport.time_of_c_noise(q.t))) for q in queries)  # noqa: E731
    keys = image_keys(0, jnp.arange(len(x)))
    log_p = jax.jit(lambda x: log_likelihood(net, transport, x, None, keys, steps, probes))(jnp.asarray(x))
    return bits_per_dimension(log_p, D, 1), -exact.reshape(len(x), -1).mean(axis=1) / math.log(2)


@every_transport
@pytest.mark.parametrize("name", ["gaussian", "mixture"])
def test_the_exact_divergence_gives_the_closed_form(name, transport, x64):
    found, exact = bits(name, transport, probes=0)
    assert found.mean() == pytest.approx(exact.mean(), abs=1e-3)
    np.testing.assert_allclose(found, exact, atol=0.02)  # the prior at T_max is not quite the marginal


@every_transport
def test_hutchinson_is_within_three_standard_errors(transport, x64):
    exact, estimated = bits("mixture", transport, probes=0)[0], bits("mixture", transport, probes=1)[0]
    off = estimated - exact
    error = off.std(ddof=1) / math.sqrt(len(off))
    assert abs(off.mean()) < 3 * error and error > 1e-3


def test_sixteen_vectors_make_a_quarter_of_the_error(x64):
    exact, one, sixteen = (bits("mixture", "ot_fm", probes)[0] for probes in (0, 1, 16))
    assert 3 < np.std(one - exact) / np.std(sixteen - exact) < 5


def test_the_error_of_the_method_falls_with_the_fourth_power_of_steps(x64):
    errors = [np.abs(np.subtract(*bits("mixture", "ot_fm", 0, steps))).max() for steps in (16, 32)]
    assert 3 < np.log2(errors[0] / errors[1]) < 5.5


def test_probes_are_an_images_own():
    """Whatever the batch, and other for each image, probe and seed."""
    like = jnp.zeros((6, 3, 2, 1))
    whole = rademacher(image_keys(0, jnp.arange(6)), 2, like)
    assert set(np.unique(whole)) == {-1, 1}
    np.testing.assert_array_equal(whole[:, 2:4], rademacher(image_keys(0, jnp.array([2, 3])), 2, like[:2]))
    others = [whole.reshape(12, -1), rademacher(image_keys(1, jnp.arange(6)), 2, like).reshape(12, -1)]
    assert len(np.unique(np.concatenate(others), axis=0)) > 12


def test_dequantised_images_round_to_themselves():
    levels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (50, 4, 4, 1)))
    images = dequantise(levels / 127.5 - 1, image_keys(0, jnp.arange(50)))
    place = (images + 1) * 127.5 - levels
    assert abs(place.mean()) < 0.05 and -0.501 < place.min() < -0.45 and 0.45 < place.max() < 0.501


def test_bits_of_uniform_images_are_eight():
    """Of 256 levels that are alike, p is 1 over the whole width of all levels."""
    assert bits_per_dimension(-7 * math.log(256 * LEVEL), 7) == pytest.approx(8)


def test_the_density_of_noise_with_augmented_dimensions(x64):
    """Student's t in one dimension, and normal where there are many."""
    x = jnp.linspace(-3, 3, 7)[:, None]
    np.testing.assert_allclose(log_density(3, x), scipy.stats.t.logpdf(x[:, 0], 3), rtol=1e-12)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 4)))
    many = scipy.stats.multivariate_t.logpdf(x, shape=np.eye(4), df=6)
    np.testing.assert_allclose(log_density(6, x), many, rtol=1e-12)
    normal = scipy.stats.norm.logpdf(x).sum(axis=1)
    np.testing.assert_allclose(log_density(0, x), normal, rtol=1e-12)
