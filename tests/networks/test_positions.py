"""Fixed position embeddings, and rotations, against those that published weights carry."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tim_jax.networks.positions import sincos_table
from tim_jax.networks.rope import rope_table

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SIDES = {"net_lightningdit": 8, "net_lightningdit_qknorm_noshift": 4, "net_jit": 4}  # patches along a side


@pytest.mark.parametrize("name", SIDES)
def test_published_weights_carry_this_embedding_bit_for_bit(name):
    published = load_file(GOLDEN / f"{name}.safetensors")["pos_embed"][0]
    np.testing.assert_array_equal(sincos_table(SIDES[name], SIDES[name], 64), published)


@pytest.mark.parametrize("name", list(SIDES)[:2])
def test_published_weights_carry_these_rotations(name, x64):
    weights, side = load_file(GOLDEN / f"{name}.safetensors"), SIDES[name]
    for table, part in zip(rope_table(side, side, 16, dtype=jnp.float64), ("cos", "sin"), strict=True):
        published = weights[f"feat_rope.freqs_{part}"]
        np.testing.assert_allclose(np.repeat(table, 2, axis=-1), published, rtol=0, atol=3e-8)  # stored in float32


def test_columns_come_first_and_row_by_row():
    table = np.asarray(sincos_table(3, 5, 8)).reshape(3, 5, 8)
    assert np.ptp(table[..., :4], axis=0).max() == 0 and np.ptp(table[..., 4:], axis=1).max() == 0
    np.testing.assert_array_equal(table[0, 0], [0, 0, 1, 1] * 2)
    np.testing.assert_allclose(table[2, 3], [*np.sin([3, 0.03]), *np.cos([3, 0.03]), *np.sin([2, 0.02]),
                                             *np.cos([2, 0.02])], rtol=1e-6)  # fmt: skip


def test_an_interpolated_grid_covers_the_trained_one():
    trained = np.asarray(sincos_table(4, 4, 32))
    np.testing.assert_array_equal(sincos_table(4, 4, 32, (4, 4)), trained)
    # Three times as many columns: every third, from the second on, lies where a trained one lay.
    wide = np.asarray(sincos_table(4, 12, 32, (4, 4))).reshape(4, 12, 32)
    np.testing.assert_allclose(wide[:, 1::3], trained.reshape(4, 4, 32), atol=1e-6)
    assert np.abs(wide - np.asarray(sincos_table(4, 12, 32)).reshape(4, 12, 32)).max() > 0.1
