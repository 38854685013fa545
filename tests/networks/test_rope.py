"""Rotary positions: products depend on relative rows and columns only."""

import jax.numpy as jnp
import numpy as np
import pytest

from tim_jax.networks.rope import ORDERS, rope_table, rotate


def grid(h, w, order):
    row, column = ORDERS[order](np.arange(h * w), h, w)
    return np.stack([row, column], axis=1)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("h", "w"), [(3, 5), (5, 3), (4, 4)])
def test_rotated_products_depend_on_relative_rows_and_columns_only(h, w, order):
    q, k = np.random.default_rng(0).standard_normal((2, 1, 1, 1, 16)).astype(np.float32)
    table = rope_table(h, w, 16, order)
    q, k = (rotate(jnp.broadcast_to(x, (1, h * w, 1, 16)), table)[0, :, 0] for x in (q, k))
    products, place = np.asarray(q @ k.T), grid(h, w, order)
    by_offset = {}
    for n, m in np.ndindex(*products.shape):
        by_offset.setdefault(tuple(place[n] - place[m]), []).append(products[n, m])
    assert len(by_offset) == (2 * h - 1) * (2 * w - 1)
    assert max(np.ptp(v) for v in by_offset.values()) < 2e-5
    # And on both: a step along either axis changes the product.
    mean = {offset: np.mean(v) for offset, v in by_offset.items()}
    assert min(abs(mean[0, 0] - mean[1, 0]), abs(mean[0, 0] - mean[0, 1])) > 1e-2


def test_row_major_order_is_where_patches_lie():
    np.testing.assert_array_equal(grid(2, 3, "row_major"), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)])


def test_official_order_is_the_transpose_of_a_square_and_no_order_of_a_rectangle():
    np.testing.assert_array_equal(grid(4, 4, "official"), grid(4, 4, "row_major")[:, ::-1])
    official = grid(2, 3, "official")
    assert official[1].tolist() == [1, 0] and official[2].tolist() == [0, 1]


def test_rotation_keeps_lengths_and_leaves_the_first_token():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 2, 8)), jnp.float32)
    y = rotate(x, rope_table(2, 3, 8))
    np.testing.assert_allclose(jnp.linalg.norm(y, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(y[:, 0], x[:, 0])
