"""Fixed position embeddings, and rotations, against those that published weights carry."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.helpers.published_networks import GOLDEN
from tim_jax.networks import NETWORKS
from tim_jax.networks.positions import sine_cosine
from tim_jax.networks.rope import rope_table

SIDES = {"net_sit": 4, "net_lightningdit": 8, "net_lightningdit_qknorm_noshift": 4, "net_jit": 4}  # patches


def table(h, w, **fields):
    return np.asarray(sine_cosine(NETWORKS["sit"](width=64, heads=4, **fields), h, w))


@pytest.mark.parametrize("name", SIDES)
def test_published_weights_carry_this_embedding_bit_for_bit(name):
    published = load_file(GOLDEN / f"{name}.safetensors")["pos_embed"][0]
    np.testing.assert_array_equal(table(SIDES[name], SIDES[name]), published)


@pytest.mark.parametrize("name", ["net_lightningdit", "net_lightningdit_qknorm_noshift"])
def test_published_weights_carry_these_rotations(name, x64):
    weights, side = load_file(GOLDEN / f"{name}.safetensors"), SIDES[name]
    for ours, part in zip(rope_table(side, side, 16, dtype=jnp.float64), ("cos", "sin"), strict=True):
        published = weights[f"feat_rope.freqs_{part}"]
        np.testing.assert_allclose(np.repeat(ours, 2, axis=-1), published, rtol=0, atol=3e-8)  # stored in float32


def test_an_interpolated_grid_covers_as_much_as_the_trained_one():
    scaled = {"positions": "interpolated", "positions_side": 4}
    trained = table(4, 4).reshape(4, 4, 64)
    np.testing.assert_array_equal(table(4, 4, **scaled).reshape(4, 4, 64), trained)
    # Three times as many patches a side: every third, from the second on, lies where a trained one lay.
    np.testing.assert_allclose(table(12, 12, **scaled).reshape(12, 12, 64)[1::3, 1::3], trained, atol=1e-6)
