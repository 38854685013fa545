"""Pictures of samples: grids, labels, nearest images."""

import numpy as np
import pytest
from PIL import Image

from tim_jax.evaluation import pictures
from tim_jax.system import tiles

SHAPE = (4, 4, 1)


def data(seed, n):
    return np.tanh(np.random.default_rng(seed).standard_normal((n, *SHAPE))).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size, scale, side", [(8, None, 80), (4, 3, 12), (96, None, 96), (80, 1, 80)])
def test_grid_shapes_and_pixels(channels, size, scale, side, tmp_path):
    images = np.random.default_rng(0).uniform(-1, 1, (5, size, size, channels)).astype(np.float32)
    picture = pictures.grid(images, 3, tmp_path / "grid.png", scale)
    step = side + tiles.GAP
    assert picture.size == (3 * step + tiles.GAP, 2 * step + tiles.GAP)
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))
    np.testing.assert_array_equal(pixels, np.asarray(picture))
    factor = side // size
    fourth = pixels[tiles.GAP + step :, tiles.GAP :][:side:factor, :side:factor]
    np.testing.assert_array_equal(fourth, pictures.to_uint8(images[3]))
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]


def test_grey_levels():
    images = np.array([-1, 1, 0, -5, 5, np.nan], np.float32).reshape(1, 6, 1)
    assert pictures.to_uint8(images)[0, :, 0].tolist() == [0, 255, 128, 0, 255, 128]


def test_labels_take_a_margin_and_leave_the_images():
    images = data(0, 6)
    plain, labelled = pictures.grid(images, 3), pictures.grid(images, 3, row_labels=["1 step", "32 steps"])
    margin = labelled.width - plain.width
    assert margin > 20 and labelled.height == plain.height
    np.testing.assert_array_equal(np.asarray(labelled)[:, margin:], np.asarray(plain))
    for half in np.split(np.asarray(labelled)[: plain.height // 2 * 2, :margin], 2):
        assert half.min() < 100


def test_any_step_grid():
    by_steps = {1: data(0, 3), 2: data(1, 3)}
    expected = pictures.grid(np.concatenate([data(0, 3), data(1, 3)]), 3, row_labels=["1 step", "2 steps"])
    np.testing.assert_array_equal(np.asarray(pictures.any_step_grid(by_steps)), np.asarray(expected))


def test_nearest():
    training = data(0, 3000)
    chosen = np.random.default_rng(0).permutation(3000)[:1500]
    samples = training[chosen] + np.float32(0.01)
    indices, gaps = pictures.nearest(samples, training)
    np.testing.assert_array_equal(indices, chosen)
    np.testing.assert_allclose(gaps, 0.04, rtol=1e-5)
    indices, gaps = pictures.nearest(training, training, 5)
    assert indices.tolist() == [0, 1, 2, 3, 4] and (gaps == 0).all()


def test_nearest_images_do_not_depend_on_batches():
    samples, training = data(2, 20), data(0, 50)
    indices, expected = pictures.nearest(samples, training)
    images, gaps = pictures.nearest_images(samples, [training[i : i + 7] for i in range(0, 50, 7)])
    np.testing.assert_array_equal(images, training[indices])
    np.testing.assert_array_equal(gaps, expected)


def test_neighbours_picture(tmp_path):
    picture = pictures.neighbours_picture(data(2, 10), [data(0, 50)], 7, 4, tmp_path / "near.png")
    assert Image.open(tmp_path / "near.png").size == picture.size
    assert picture.width >= 4 * (2 * tiles.SIDE + tiles.GAP)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: pictures.grid(np.zeros((2, 8, 8, 4)), 2), "1 or 3 channels"),
        (lambda: pictures.grid(np.zeros((8, 8, 1)), 2), "expected \\(n, h, w, C\\)"),
        (lambda: pictures.grid(np.zeros((0, 8, 8, 1)), 2), "n at least 1"),
        (lambda: pictures.grid(np.zeros((2, 8, 8, 1)), 0), "columns is 0"),
        (lambda: pictures.grid(np.zeros((2, 8, 8, 1)), 2, scale=0), "scale is 0"),
        (lambda: pictures.grid(np.zeros((2, 8, 8, 1)), 1, row_labels=["a"]), "row_labels: 1; there must be 2"),
        (lambda: pictures.grid(np.zeros((3, 8, 8, 1)), 2, column_labels=["a"]), "column_labels: 1; there must be 2"),
        (lambda: pictures.grid(np.zeros((3, 8, 8, 1)), 2, tile_labels=["a"]), "tile_labels: 1; there must be 3"),
        (lambda: pictures.any_step_grid({1: data(0, 2), 2: data(0, 3)}), "same number"),
        (lambda: pictures.nearest(np.zeros((2, 8, 8, 1)), np.zeros((2, 4, 4, 1))), "expected that of training"),
    ],
)
def test_pictures_refuse(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
