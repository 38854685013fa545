"""Tiles: exact where a function looks no further than the overlap, and without seams where it does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tim_jax import codecs

KERNEL = np.random.default_rng(0).standard_normal((3, 3, 2, 2)).astype(np.float32)


def up(x):
    """A convolution, then four times the size."""
    x = jax.lax.conv_general_dilated(x, KERNEL, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return x.repeat(4, axis=1).repeat(4, axis=2)


def down(x):
    """Means of squares of four, then a convolution."""
    B, H, W, C = x.shape
    x = x.reshape(B, H // 4, 4, W // 4, 4, C).mean((2, 4))
    return jax.lax.conv_general_dilated(x, KERNEL, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("shape", [(24, 24), (37, 50), (16, 61), (90, 12)])
def test_a_function_that_looks_less_far_than_the_margin_is_exact(shape):
    x = np.random.default_rng(1).standard_normal((2, *shape, 2)).astype(np.float32)
    np.testing.assert_allclose(codecs.tiled(up, x, 16, 8), up(x), atol=1e-5)
    x = np.random.default_rng(2).standard_normal((2, 4 * shape[0], 4 * shape[1], 2)).astype(np.float32)
    np.testing.assert_allclose(codecs.tiled(down, x, 64, 32), down(x), atol=1e-5)


def test_rows_over_eight_devices_are_cut_where_they_are():
    rows = NamedSharding(Mesh(np.array(jax.devices()), "data"), PartitionSpec("data"))
    x = np.random.default_rng(1).standard_normal((8, 20, 30, 2)).astype(np.float32)
    compiled = jax.jit(lambda x: codecs.tiled(up, x, 16, 8)).lower(jax.device_put(x, rows)).compile()
    assert not [word for word in ("all-gather", "all-reduce", "all-to-all") if word in compiled.as_text()]
    np.testing.assert_allclose(compiled(jax.device_put(x, rows)), up(x), atol=1e-5)


def test_what_is_no_larger_than_a_tile_is_not_cut():
    x = jnp.ones((1, 16, 9, 2))
    np.testing.assert_array_equal(codecs.tiled(lambda x: x + x.mean(), x, 16, 8), 2 * x)


@pytest.mark.parametrize("tile, overlap", [(16, 0), (16, 9)])
def test_an_overlap_that_cannot_be_is_refused(tile, overlap):
    with pytest.raises(ValueError, match=f"overlap of tiles is {overlap}; it must be from 1 to half"):
        codecs.tiled(up, jnp.zeros((1, 32, 32, 2)), tile, overlap)


def test_a_size_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="width is 130; it must be a multiple of 4"):
        codecs.tiled(down, jnp.zeros((1, 128, 130, 2)), 64, 32)


TILE, OVERLAP, PERIOD = 32, 16, 16
SIZE = (48, 64)  # two by three tiles


def steps_between_columns(images):
    """Mean step from each column to the next, over rows and colours."""
    return np.abs(np.diff(images, axis=2)).mean((0, 1, 3))


@pytest.mark.slow
@pytest.mark.parametrize("name, channels", [("autoencoder_kl_tiny", 4), ("autoencoder_dc_tiny", 8)])
def test_tiles_of_a_decoder_leave_no_seam(published, name, channels):
    """On smooth latents that repeat, so that a tile holds what the whole does: norms and attention see the same.

    What differs then are the tiles' own borders. The root mean square of it stays below a tenth of the image's
    deviation, and no step between neighbouring columns is larger than in the whole image; where tiles are set side by
    side without blending, both are.
    """
    vae, params = codecs.load(published(name), codecs.AUTOENCODERS)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] * 2 * np.pi / PERIOD
    latents = np.stack([np.sin(x + k) * np.cos(y + k) for k in range(channels)], -1)[None].astype(np.float32)
    latents *= 0.3 * vae.config.scaling_factor

    def decode(z):
        return vae.apply({"params": params}, z, method="decode")

    whole = np.asarray(jax.jit(decode)(latents))
    blended = np.asarray(jax.jit(lambda z: codecs.tiled(decode, z, TILE, OVERLAP))(latents))
    inside = slice(4 * vae.factor, -4 * vae.factor)  # an image's own border is the largest step of all
    largest = steps_between_columns(whole)[inside].max()
    assert np.sqrt(np.mean((blended - whole) ** 2)) < 0.1 * whole.std()
    assert steps_between_columns(blended)[inside].max() < 1.1 * largest
    half = SIZE[1] // 2
    beside = np.concatenate([jax.jit(decode)(latents[:, :, :half]), jax.jit(decode)(latents[:, :, half:])], axis=2)
    assert steps_between_columns(beside)[inside].max() > 1.1 * largest
