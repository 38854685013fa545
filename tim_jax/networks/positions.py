"""Fixed embeddings of places: sines and cosines of the column and of the row of a patch (DiT, arXiv 2212.09748).

A half of the width is for the column, the other for the row, of which each has sines, then cosines, of its number times
10000^(-4 i / D), i = 0 .. D/4 - 1. They are added to the states before the first block.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.networks.checks import check_at_least, check_choices
from tim_jax.networks.layers import wide

# What `model.positions` may be: the embedding as published, which takes squares alone; the same at the places that
# `interpolated` gives; rotary embedding in its place (`rope.py`).
POSITIONS = ("sincos", "interpolated", "rope")


def interpolated(count: int, side: int) -> np.ndarray:
    """Returns the places (count,) along an axis of a grid that is stretched over a square of `side`.

    They lie between those of the square, so that a network sees no place that it was not trained on; the square itself
    has 0 .. side - 1.
    """
    return (np.arange(count) + 0.5) * side / count - 0.5


def sine_cosine(net: Any, h: int, w: int) -> jax.Array:
    """Returns the embedding (h w, D) of a grid of patches, row by row.

    Args:
        net: A `Transformer` with the fields `positions` and `positions_side`.
        h, w: The numbers of patches along the height and the width.
    """
    side = net.positions_side
    places = {n: interpolated(n, side) if net.positions == "interpolated" else np.arange(n) for n in (h, w)}
    quarter = net.width // 4
    frequency = 10000.0 ** (-np.arange(quarter) / quarter)

    def waves(n: int) -> jax.Array:  # made in float64 and rounded to float32, as published weights have them
        angle = places[n][:, None] * frequency
        return jnp.asarray(np.concatenate([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32), wide(net.dtype))

    shape = (h, w, 2 * quarter)
    columns, rows = jnp.broadcast_to(waves(w)[None], shape), jnp.broadcast_to(waves(h)[:, None], shape)
    return jnp.concatenate([columns, rows], axis=-1).reshape(h * w, -1)


def check(net: Any) -> None:
    """Raises ValueError, naming the key, for fields of a network that cannot be."""
    check_choices(net, {"positions": POSITIONS})
    check_at_least(net, 1, "positions_side")


def check_grid(net: Any, h: int, w: int) -> None:
    """Raises ValueError, naming the key, for a grid of patches that is no square, where only squares have places."""
    if net.positions == "sincos" and h != w:
        raise ValueError(
            f"model.positions is 'sincos'; it must be 'interpolated' or 'rope' for images of {h} × {w} patches, as "
            "only squares have places in it"
        )
