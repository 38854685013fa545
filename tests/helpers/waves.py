"""Examples, networks and times that the tests of objectives share."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tim_jax.transitions import TRANSPORTS
from tim_jax.types import Examples, Output

SHAPE = (16, 2, 2, 3)
LATE = jnp.int32(1_000_000)  # all that warms up is over
every_transport = pytest.mark.parametrize("transport", TRANSPORTS)


def plain_times(transport):
    """The transport, whose networks see t itself."""
    return dataclasses.replace(TRANSPORTS[transport](), c_noise=lambda t: t)


def random(seed, shape=SHAPE):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def rows_of(x, noise, label=None):
    label = jnp.arange(len(x)) % 5 if label is None else label
    return Examples(x, noise, {"label": label}, {"label": jnp.full_like(label, 9)}, is_null=label == 9)


def answer(F, velocity, pooled=None):
    """An Output with every head that objectives ask for."""
    pooled = F[:, 0, 0] if pooled is None else pooled
    return Output(F, None, {"velocity": velocity, "log_variance": jnp.zeros(len(F)), "pooled": pooled})


def wave(x, t, r):
    """Some smooth function of state and times, (B, …)."""
    t, r = t[:, None, None, None], r[:, None, None, None]
    return jnp.sin(2 * x + t - 0.5 * r) + 0.3 * jnp.cos(x * r + 0.2 * t)
