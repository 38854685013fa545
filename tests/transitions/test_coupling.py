"""Couplings of noise with data: their operators, the noise ends of paths, and the examples of a step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tim_jax.training.nets import class_conditions
from tim_jax.training.step import StepSettings, make_examples
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.coupling import COUPLINGS, Coupling
from tim_jax.transitions.objectives.kinds import DIAGONAL, unweighted
from tim_jax.types import Examples, Output

ALL = [(task, 3 if task == "colourisation" else 1) for task in COUPLINGS]


def images(channels, count=6, side=8):
    return jax.random.uniform(jax.random.key(3), (count, side, side, channels), minval=-1)


@pytest.mark.parametrize("task", ["super_resolution", "colourisation"])
def test_what_is_degraded_already_stays_as_it_is(task):
    coupling, keys = Coupling(task), jax.random.split(jax.random.key(0), 6)
    once = coupling.degrade(keys, images(3))
    assert once.shape == (6, 8, 8, coupling.channels(3)) and not np.allclose(once, images(3))
    np.testing.assert_allclose(coupling.degrade(keys, once), once, atol=1e-6)


def test_super_resolution_is_means_of_squares():
    x = images(1)
    m = Coupling("super_resolution", factor=4).degrade(jax.random.split(jax.random.key(0), 6), x)
    np.testing.assert_allclose(m[2, 4:, :4, 0], np.full((4, 4), x[2, 4:, :4, 0].mean()), rtol=1e-5)


def test_a_rectangle_is_missing_by_each_images_own_key():
    coupling, x = Coupling("inpainting", missing=0.25), images(3, 64, 16)
    keys = jax.random.split(jax.random.key(0), 64)
    image = coupling.degrade(keys, x)
    known = np.asarray(image[..., -1])
    np.testing.assert_array_equal(coupling.mean(image), known[..., None] * x)
    for mask in 1 - known:
        rows, columns = mask.any(axis=1), mask.any(axis=0)
        np.testing.assert_array_equal(mask, rows[:, None] & columns[None])
        assert 0 < np.diff(np.flatnonzero(rows)).max(initial=1) <= 1
    assert abs((1 - known).mean() - 0.25) < 0.02 and len({mask.tobytes() for mask in known}) > 40
    # The batch does not matter.
    np.testing.assert_array_equal(coupling.degrade(keys[5:7], x[5:7]), image[5:7])


@pytest.mark.parametrize("task, channels", ALL)
def test_the_noise_end(task, channels):
    coupling, x, xi = (
        Coupling(task, scale=0.5),
        images(channels),
        jax.random.normal(jax.random.key(1), (6, 8, 8, channels)),
    )
    image = coupling.degrade(jax.random.split(jax.random.key(0), 6), x)
    missing = 1 - image[..., -1:] if task == "inpainting" else 1.0
    np.testing.assert_allclose(coupling.noise(image, xi), coupling.mean(image) + 0.5 * missing * xi, atol=1e-6)
    if task == "inpainting":  # known pixels are the data's own at both ends, and so do not move
        np.testing.assert_array_equal(np.where(missing, 0, coupling.noise(image, xi) - x), 0)


def test_examples_have_the_degraded_image_in_both_conditions_and_noise_around_it():
    coupling, x = Coupling("super_resolution", scale=0.1), images(1, 32)
    batch = {"x": x, "label": jnp.zeros(32, jnp.int32)}

    def examples(coupling):
        conditions = class_conditions(10)
        settings = StepSettings({}, None, None, None, {}, conditions, condition_dropout=0.5, couple=coupling)
        return make_examples(settings, batch, jax.random.key(0))

    coupled, independent = examples(coupling.couple), examples(None)
    assert "image" not in independent.condition
    m = coupled.condition["image"]
    np.testing.assert_array_equal(m, coupled.null_condition["image"])
    np.testing.assert_array_equal(m, coupling.degrade(jax.random.split(jax.random.key(0), 32), x))  # without a key
    # The labels and normal noise are those of a run without it.
    np.testing.assert_array_equal(coupled.condition["label"], independent.condition["label"])
    np.testing.assert_allclose(coupled.noise, m + 0.1 * independent.noise, atol=1e-6)


@pytest.mark.slow
def test_the_optimum_of_flow_matching_is_the_conditional_mean(x64):
    """For x = m + a z at a given m, ε = m + s ξ: E[ε − x | x_t, m] in closed form is where the gradient vanishes."""
    a, s, count = 0.5, 0.3, 200_000
    z, xi = jax.random.normal(jax.random.key(0), (2, count, 1))
    m = jax.random.normal(jax.random.key(1), (count, 1))
    t = jnp.full(count, 0.4)
    variance = ((1 - t) * a) ** 2 + (t * s) ** 2
    slope = (t * s**2 - (1 - t) * a**2) / variance

    def loss(scale):
        def net(queries):
            return tuple(Output(scale * slope[:, None] * (q.x_t - m)) for q in queries)

        condition = {"image": m}
        examples = Examples(m + a * z, m + s * xi, condition, condition, jnp.zeros(count, bool))
        objective = unweighted(TRANSPORTS["ot_fm"](), DIAGONAL)
        return objective.loss({"online": net}, examples, t, t, jnp.asarray(0))[0].mean()

    value, gradient = jax.value_and_grad(loss)(1.0)
    assert abs(gradient) < 0.01 * value


@pytest.mark.parametrize("transport", ["ve", "edm"])
def test_paths_that_keep_data_to_their_end_are_refused(transport):
    with pytest.raises(ValueError, match="objective.coupling.task is 'inpainting'; it must be 'none' for"):
        Coupling("inpainting").check(TRANSPORTS[transport]())
