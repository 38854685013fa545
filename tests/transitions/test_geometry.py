"""The geometry of paths: 0 for straight ones, the closed form of a Gaussian, the published distance from the chord."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from tests.helpers.waves import every_transport
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.gaussian import Gaussian
from tim_jax.transitions.geometry import (
    bend,
    data_of_jump,
    deviation,
    share_of_noise,
    straight_slope,
    straight_state,
    straightness,
)
from tim_jax.transitions.jump import jump

STD, MEAN = 0.4, 0.7


def path(transport, std, n=200, images=5, last=0.0):
    """States, slopes and u (n,) along exact paths of N(MEAN, std²), down to a noise level."""
    gaussian = Gaussian(transport, MEAN, std)
    low, high = (float(transport.level(jnp.asarray(t))) for t in (transport.T_min, transport.T_max))
    t = np.clip(transport.time_of_level(jnp.linspace(high, max(low, last), n)), transport.T_min, transport.T_max)
    times, begin = jnp.repeat(t, images), jnp.full(n * images, t[0])
    start = np.random.default_rng(0).standard_normal((images, 2, 3, 1)) * transport.sigma(t[0])
    x_t = gaussian.flow_map(jnp.tile(start, (n, 1, 1, 1)), begin, times)
    y = straight_state(transport, x_t, times)
    slopes = straight_slope(transport, x_t, gaussian.F(x_t, times, times), times)
    y, slopes = (np.asarray(part).reshape(n, images, 2, 3, 1) for part in (y, slopes))
    return y, slopes, share_of_noise(transport, np.asarray(t))


@every_transport
def test_the_flow_to_a_point_is_straight(transport, x64):
    y, slopes, u = path(TRANSPORTS[transport](), std=1e-9, last=0.05)
    assert straightness(y, slopes, u).max() < 1e-12 and deviation(y).max() < 1e-6


@every_transport
def test_straightness_of_a_gaussian_is_its_closed_form(transport, x64):
    """The path is (1 − u) MEAN + S_u z/S₁ with S_u² = (1 − u)² s² + u², in a plane of which the chord is known."""
    y, slopes, u = path(TRANSPORTS[transport](), STD)
    S = lambda u: np.hypot((1 - u) * STD, u)  # noqa: E731
    rate = lambda u: (u - (1 - u) * STD**2) / S(u)  # noqa: E731
    z = (y[0] - (1 - u[0]) * MEAN) / S(u[0])
    chord = (S(u[0]) - S(u[-1])) / (u[0] - u[-1])
    exact = scipy.integrate.quad(lambda u: (rate(u) - chord) ** 2, u[-1], u[0])[0]
    expected = exact * np.square(z).reshape(len(z), -1).mean(axis=1)
    np.testing.assert_allclose(straightness(y, slopes, u), expected, rtol=2e-3)
    middle = len(u) // 2
    squares = np.square(z).reshape(len(z), -1).mean(axis=1)
    np.testing.assert_allclose(bend(y, slopes, u)[middle], (rate(u[middle]) - chord) ** 2 * squares, rtol=1e-9)


def test_deviation_is_the_published_distance(golden):
    given = golden("gits.npz")
    trajectory = given["deviation/trajectory"]
    found = deviation(trajectory) * np.sqrt(np.prod(trajectory.shape[2:]))
    np.testing.assert_allclose(found[1:-1], given["deviation/value"].T, rtol=1e-9)
    np.testing.assert_allclose(found[[0, -1]], 0, atol=1e-7)


@every_transport
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_data_of_a_jump_lies_on_its_line(transport, share, x64):
    """State, the jump's end and x̂ are in line; of the jump to data x̂ is that end itself, but for its noise."""
    transport = TRANSPORTS[transport]()
    x_t, t = np.random.default_rng(0).standard_normal((3, 2, 2, 1)), transport.time_of_level(jnp.full(3, 0.6))
    r = transport.time_of_level(0.6 * share * jnp.ones(3))
    F = Gaussian(transport, MEAN, STD).F(x_t, t, r)
    x_hat, end = data_of_jump(transport, x_t, F, t), jump(transport, x_t, F, t, r)
    here, there = (straight_state(transport, *pair) for pair in ((x_t, t), (end, r)))
    u, v = share_of_noise(transport, np.asarray(t))[0], share_of_noise(transport, np.asarray(r))[0]
    np.testing.assert_allclose(x_hat, here + (there - here) * u / (u - v), rtol=1e-6, atol=1e-9)
