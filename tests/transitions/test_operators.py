"""Measurements: their singular values, what they leave as it is, and their shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tim_jax.transitions.operators import OPERATORS, feathered, gaussian, motion, parse

SHAPE = (8, 8, 3)
FLAT = np.prod(SHAPE)


def matrix(name):
    """The gain times the derivative of a measurement at an image without structure, (measured, FLAT)."""
    operator = OPERATORS[name]
    numbers = operator.numbers
    assert not operator.refuses(SHAPE, *numbers)
    x = jax.random.normal(jax.random.key(0), SHAPE)
    measure = lambda x: operator.gain(SHAPE, *numbers) * operator.measure(x[None], *numbers)[0]  # noqa: E731
    return np.asarray(jax.jit(jax.jacobian(measure))(x)).reshape(-1, FLAT)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_largest_singular_value_is_one(name):
    largest = np.linalg.svd(matrix(name), compute_uv=False)[0]
    # Reflection at the edges counts pixels beside them twice.
    assert largest == pytest.approx(1, abs=0.1 if "blur" in name else 1e-5)


@pytest.mark.parametrize(
    "name", [name for name in OPERATORS if name not in ("colour_statistics", "greyscale", "box_inpainting")]
)
def test_a_flat_image_is_measured_as_it_is(name):
    x = jnp.broadcast_to(jnp.array([0.5, -0.25, 0.75]), (2, *SHAPE))
    y = OPERATORS[name].measure(x, *OPERATORS[name].numbers)
    np.testing.assert_allclose(y, np.broadcast_to(x[:, :1, :1], y.shape), atol=1e-6)


def test_values_of_small_cases():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_allclose(OPERATORS["super_resolution"].measure(x, 2)[0, ..., 0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_allclose(motion(3, 0), np.outer([0, 0, 1, 0, 0], [0, 1, 1, 1, 0]) / 3, atol=1e-12)
    np.testing.assert_allclose(motion(3, 90), motion(3, 0).T, atol=1e-12)
    assert motion(5, 45)[1, -2] > 0 == motion(5, 45)[1, 1]  # counter-clockwise: up to the right
    np.testing.assert_allclose(gaussian(1.0)[2:5], np.exp([-0.5, 0, -0.5]) / np.sqrt(2 * np.pi), rtol=3e-3)
    grey = OPERATORS["greyscale"].measure(jnp.array([[[[1.0, 0.5, -1.0]]]]))
    np.testing.assert_allclose(grey, 0.299 + 0.2935 - 0.114, rtol=1e-6)
    rows = jnp.stack([x[0, ..., 0], -x[0, ..., 0], 0 * x[0, ..., 0]], axis=-1)[None]
    std = np.arange(16).std()
    np.testing.assert_allclose(
        OPERATORS["colour_statistics"].measure(rows)[0], [[7.5, -7.5, 0], [std, std, 0]], rtol=1e-6, atol=1e-5
    )


def test_names_have_numbers_behind_them():
    assert parse("super_resolution:2") == ("super_resolution", (2.0,))
    assert parse("motion_blur:7") == ("motion_blur", (7.0, 0.0)) and parse("motion_blur") == ("motion_blur", (5.0, 0.0))
    for wrong in ("super_resolution:two", "super_resolution:2:3", "greyscale:1"):
        with pytest.raises(ValueError, match="it must have"):
            parse(wrong)


@pytest.mark.parametrize(
    "name, shape, numbers",
    [
        ("super_resolution", (8, 6, 1), (4,)), ("super_resolution", SHAPE, (1.5,)), ("greyscale", (8, 8, 1), ()),
        ("gaussian_blur", SHAPE, (3,)), ("motion_blur", SHAPE, (17, 0)), ("gaussian_blur", SHAPE, (0,)),
    ],
)  # fmt: skip
def test_what_an_image_is_too_small_for_is_said(name, shape, numbers):
    assert OPERATORS[name].refuses(shape, *numbers)


def test_a_feathered_mask_keeps_its_area_and_its_middle():
    mask = np.zeros((16, 12))
    mask[:, 6:] = 1
    soft = feathered(mask, 1.0)
    assert soft.shape == mask.shape and soft.sum() == pytest.approx(mask.sum())
    np.testing.assert_allclose(soft[:, [0, -1]], mask[:, [0, -1]], atol=1e-6)
    assert 0 < soft[0, 5] < 0.5 < soft[0, 6] < 1
    assert feathered(mask, 0) is mask
