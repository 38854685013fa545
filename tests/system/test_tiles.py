"""Labelled tiles: pixels stay what they are, labels stay within their column and within the picture."""

import numpy as np
import pytest

from tim_jax.system import tiles

TEXTS = [
    "cat",
    "a photograph of a cup of coffee on a wooden table, in the morning sun",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "жук",
    "",
]


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(60, 200, (*shape, 3), np.uint8)


@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (32, 32), (20, 50), (64, 64), (256, 256)])
def test_small_tiles_become_large_enough_to_be_seen(shape):
    factor = tiles.enlargement([noise(shape)])
    side = factor * np.sqrt(shape[0] * shape[1])
    assert side >= 64 and (factor == 1 or side < 2 * tiles.SIDE)


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("text", TEXTS)
def test_text_is_broken_into_lines_that_fit(text, width):
    lines = tiles.wrapped(text, width).split("\n")
    assert len(lines) <= tiles.LINES
    assert all(tiles.font(tiles.TEXT).getlength(line) <= width for line in lines)
    whole = "".join(lines).replace(" ", "")
    assert whole == text.replace(" ", "") or whole.endswith("…") and text.replace(" ", "").startswith(whole[:-1])


def test_labels_are_drawn_where_they_belong_and_no_tile_is_touched():
    rows = [[noise((4, 6 + 2 * c), seed=10 * r + c) for c in range(3)] for r in range(2)]
    plain = np.asarray(tiles.sheet(rows, scale=12))
    labels = {"row_labels": ["1 step", "64 steps"], "column_labels": TEXTS[:3], "tile_labels": TEXTS[:4] + ["x", "y"]}
    picture = np.asarray(tiles.sheet(rows, scale=12, title="title", **labels))
    assert picture.shape[0] > plain.shape[0] and picture.shape[1] > plain.shape[1]
    margin = picture.shape[1] - plain.shape[1]
    dark = (picture < 50).all(axis=-1)
    assert dark[:, :margin].any() and not dark[:, :2].any() and not dark[:, -1].any() and not dark[-1].any()
    left = margin + tiles.GAP
    for column, width in enumerate(12 * (6 + 2 * c) for c in range(3)):
        for row in rows:
            tile = row[column].repeat(12, axis=0).repeat(12, axis=1)
            places = [
                top
                for top in range(picture.shape[0] - len(tile) + 1)
                if np.array_equal(picture[top : top + len(tile), left : left + width], tile)
            ]
            assert len(places) == 1
        left += width + tiles.GAP


def test_neighbours_of_one_label_share_it():
    rows = [[noise((8, 4), seed=c) for c in range(4)]]
    apart, together = (
        np.asarray(tiles.sheet(rows, scale=8, column_labels=labels))
        for labels in (["two cats"] * 2 + ["x"] * 2, ["two cats", "two cats ", "x", "x"])
    )
    assert len(apart) < len(together), "it has more room"
    dark = (apart[: len(apart) - 68] < 100).all(axis=-1).any(axis=0)
    middle = tiles.GAP + 32 + tiles.GAP // 2
    assert dark[middle - 20 : middle + 20].any()
