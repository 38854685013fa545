"""Fixed embeddings of places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.helpers.published_networks import GOLDEN
from tim_jax.networks import NETWORKS
from tim_jax.networks.positions import interpolated
from tim_jax.networks.rope import rope_table

SIDES = {"net_sit": 4, "net_lightningdit": 8, "net_lightningdit_qknorm_noshift": 4, "net_jit": 4}  # patches


def embedding(h, w, positions, side=16):
    net = NETWORKS["dit"](width=16, heads=4, positions=positions, positions_side=side)
    return net.sine_cosine(h, w).reshape(h, w, 16)


@pytest.mark.parametrize("name", SIDES)
def test_published_weights_carry_this_embedding_bit_for_bit(name):
    published, side = load_file(GOLDEN / f"{name}.safetensors")["pos_embed"][0], SIDES[name]
    np.testing.assert_array_equal(NETWORKS["dit"](width=64, heads=4).sine_cosine(side, side), published)


@pytest.mark.parametrize("name", ["net_lightningdit", "net_lightningdit_qknorm_noshift"])
def test_published_weights_carry_the_rotations_of_rope(name, x64):
    weights, side = load_file(GOLDEN / f"{name}.safetensors"), SIDES[name]
    for ours, part in zip(rope_table(side, side, 16, dtype=jnp.float64), ("cos", "sin"), strict=True):
        published = weights[f"feat_rope.freqs_{part}"]
        np.testing.assert_allclose(np.repeat(ours, 2, axis=-1), published, rtol=0, atol=3e-8)  # stored in float32


def test_half_of_the_width_tells_the_column_and_half_the_row():
    found = embedding(3, 3, "sincos")
    frequency = 10000.0 ** (-np.arange(4) / 4)
    for row, column in ((0, 0), (2, 1)):
        waves = [wave(place * frequency) for place in (column, row) for wave in (np.sin, np.cos)]
        np.testing.assert_allclose(found[row, column], np.concatenate(waves), atol=1e-6)


def test_interpolation_stays_within_the_square():
    np.testing.assert_array_equal(interpolated(6, 6), np.arange(6))
    for count in (2, 5, 24):
        places = interpolated(count, 6)
        np.testing.assert_allclose(np.diff(places), 6 / count)
        np.testing.assert_allclose([places.mean(), places[0] + places[-1]], [2.5, 5])
        assert -0.5 < places[0] and places[-1] < 5.5
    np.testing.assert_allclose(embedding(6, 6, "interpolated", 6), embedding(6, 6, "sincos"), atol=1e-6)


def test_turning_a_rectangle_exchanges_rows_and_columns():
    tall, wide = embedding(4, 9, "interpolated"), embedding(9, 4, "interpolated")
    np.testing.assert_allclose(jnp.roll(tall, 8, -1), wide.swapaxes(0, 1), atol=1e-6)


def test_it_is_made_once_for_each_axis(x64):
    """A large image costs a program two tables, not one as large as its states."""
    net = NETWORKS["dit"](width=64, heads=4)
    size = sum(np.size(const) for const in jax.make_jaxpr(lambda: net.sine_cosine(64, 64))().consts)
    assert size <= 2 * 64 * 32
    assert net.clone(dtype=jnp.float64).sine_cosine(2, 2).dtype == jnp.float64


@pytest.mark.parametrize("fields", [{"positions": "learned"}, {"positions_side": 0}])
def test_fields_that_cannot_be_are_named(fields):
    (key,) = fields
    with pytest.raises(ValueError, match=f"^model.{key} is .*; it must be "):
        NETWORKS["dit"](**fields)
