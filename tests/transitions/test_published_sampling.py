"""Released models sample as published: their configurations' trajectories are those of the published loop.

The loop is written again here, in NumPy and for OT-FM alone, from the published code (`TransitionSchedule.sample` and
`OT_FM.from_x_t_to_x_r`), with its time grid in float64; it shares nothing with the package but the network's formula.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tim_jax.config import loading
from tim_jax.config.sections import read
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.sampling.noise import image_keys
from tim_jax.transitions.sampling.planning import make_plan, time_grid
from tim_jax.transitions.sampling.sampler import sample
from tim_jax.transitions.sampling.settings import Sampling
from tim_jax.types import Output

SHAPE, CLASSES = (2, 2, 3), 4
RNG = np.random.default_rng(0)
W1, W2, A, B = RNG.normal(0, 0.4, (16, 12)), RNG.normal(0, 0.6, (12, 16)), *RNG.normal(0, 1, (2, 16))
LABELS = RNG.normal(0, 1, (CLASSES + 1, 16))  # the last is that of no class
Z, Y = RNG.standard_normal((3, *SHAPE)), np.array([0, 3, 1])
# Steps, guidance, the ends of its interval, fresh noise: the published command lines first (250 steps of ImageNet 256
# and 512, four of text to image), then what meets the ends of the interval within the rounding of times.
COMMANDS = [
    (1, 1.0, 0.0, 1.0, 0.0), (250, 2.5, 0.0, 0.6, 0.2), (250, 3.0, 0.0, 0.7, 0.2), (4, 2.5, 0.0, 1.0, 0.0),
    (64, 2.5, 0.0, 1.0, 0.0), (1, 2.5, 0.0, 1.0, 0.0), (2, 2.5, 0.0, 1.0, 0.9), (8, 2.5, 0.25, 0.75, 0.0),
    (5, 1.5, 0.2, 0.6, 0.3), (17, 4.0, 0.1, 0.9, 1.0),
]  # fmt: skip


def network(xp, x, t, r, y):
    """F of states (n, *SHAPE) at one t and r: two matrices, in NumPy or in JAX."""
    hidden = xp.tanh(x.reshape(len(x), 12) @ W1.T + (t * A + r * B)[None] + xp.asarray(LABELS)[y])
    return (hidden @ W2.T).reshape(x.shape)


def published(steps, scale, low, high, stochasticity, fresh):
    """States (steps + 1, n, *SHAPE) of the published loop; fresh: (steps, n, *SHAPE) noise."""
    t_max, t_min, null = 1.0, 0.0, np.full(len(Y), CLASSES)
    times = t_max + (t_min - t_max) * np.arange(steps + 1) / steps
    states = [Z]
    for i, (t, r) in enumerate(zip(times[:-1], times[1:], strict=True)):
        x = states[-1]
        F = network(np, x, t, r, Y)
        if scale > 1 and low * t_max < t < high * t_max:
            unguided = network(np, x, t, r, null)
            F = unguided + scale * (F - unguided)
        after = x - (t - r) * F
        if stochasticity and t < t_max and r > t_min:
            noise = x + (1 - t) * F
            after = after - stochasticity * noise * (t - r) + np.sqrt(stochasticity * 2 * t * (t - r)) * fresh[i]
        states.append(after)
    return np.stack(states)


def net(queries):
    """The network of `published` as samplers take it, for times that all states share."""
    return tuple(Output(network(jnp, q.x_t, q.t[0], q.r[0], q.condition["label"])) for q in queries)


def ours(sampling, steps, keys):
    transport = TRANSPORTS["ot_fm"]()
    plan = make_plan(transport, time_grid(transport, steps, sampling), sampling)
    condition, null = {"label": jnp.asarray(Y)}, {"label": jnp.full(len(Y), CLASSES)}
    run = jax.jit(lambda plan: sample(net, plan, jnp.asarray(Z), condition, null, keys, sampling.guidance, True))
    return np.asarray(run(plan))


def settings(name, guidance, low, high, stochasticity):
    changes = {"guidance_low": low, "guidance_high": high, "stochasticity": stochasticity, "guidance": guidance}
    section = loading.load(name).get_config().sampling.to_dict()
    return read(Sampling, section | {"sampler": "flow_map"} | changes)


@pytest.mark.slow
@pytest.mark.parametrize("steps, guidance, low, high, stochasticity", COMMANDS)
def test_released_models_follow_the_published_trajectories(steps, guidance, low, high, stochasticity, x64):
    keys = image_keys(7, jnp.arange(len(Z)))
    draw = jax.vmap(lambda key, i: jax.random.normal(jax.random.fold_in(key, i), SHAPE), (0, None))
    fresh = np.stack([draw(keys, i + 1) for i in range(steps)])
    expected = published(steps, guidance, low, high, stochasticity, fresh)
    for name in ("released_imagenet256", "released_imagenet512", "released_t2i"):
        sampling = settings(name, guidance, low, high, stochasticity)
        found = ours(sampling, steps, keys)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, atol=1e-14 * np.abs(expected).max(), rtol=0, err_msg=name)
    if guidance > 1 and high == 1.0:  # configurations of our own guide the first step as well
        own = ours(settings("imagenet256_xl", guidance, low, high, 0.0), steps, keys)
        assert np.abs(own[1] - expected[1]).max() > 1e-2


def test_configurations_of_our_own_take_the_exact_form_of_noise():
    assert loading.load("imagenet256_xl").get_config().sampling.stochastic == "renoise"
