"""Fixed embeddings of places: sines and cosines of the column and of the row of a patch (DiT, arXiv 2212.09748).

A half of the width is for the column, the other for the row, of which each has sines, then cosines, of its number times
10000^(-4 i / D), i = 0 .. D/4 - 1. They are added to the states before the first block.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.networks.checks import check_at_least, check_choices
from tim_jax.networks.layers import wide
from tim_jax.networks.rope import rope_table
from tim_jax.networks.single_time import SingleTime

UNUSED = {
    ("model.positions_side",): (
        "model.positions is not 'interpolated'",
        lambda c: c.model.positions != "interpolated",
    )
}

# What `model.positions` may be: the embedding as published, which takes squares alone; the same at the places that
# `interpolated` gives; rotary embedding in its place (`rope.py`).
POSITIONS = ("sincos", "interpolated", "rope")


def interpolated(count: int, side: int) -> np.ndarray:
    """Returns the places (count,) along an axis of a grid that is stretched over a square of `side`.

    They lie between those of the square, so that a network sees no place that it was not trained on; the square itself
    has 0 .. side - 1.
    """
    return (np.arange(count) + 0.5) * side / count - 0.5


class Positioned(SingleTime):
    """A network of one time whose published form has the fixed embedding of places."""

    # How tokens know their places: "sincos", as published, for squares alone; "interpolated": the same embedding, its
    # places stretched over a square of positions_side patches; "rope": rotary in its place
    positions: str = "sincos"
    positions_side: int = 16  # patches along a side of the squares that the weights were trained on

    @nn.nowrap
    def check(self) -> None:
        super().check()
        check_choices(self, {"positions": POSITIONS})
        check_at_least(self, 1, "positions_side")

    @nn.nowrap
    def check_grid(self, h: int, w: int) -> None:
        if self.positions == "sincos" and h != w:
            raise ValueError(
                f"model.positions is 'sincos'; it must be 'interpolated' or 'rope' for images of {h} × {w} patches, as "
                "only squares have places in it"
            )

    def position_embedding(self, h: int, w: int) -> jax.Array | None:
        return None if self.positions == "rope" else self.sine_cosine(h, w)

    @nn.nowrap
    def sine_cosine(self, h: int, w: int) -> jax.Array:
        """Returns the embedding (h w, D) of a grid of h × w patches, row by row."""
        side, quarter = self.positions_side, self.width // 4
        places = {n: interpolated(n, side) if self.positions == "interpolated" else np.arange(n) for n in (h, w)}
        frequency = 10000.0 ** (-np.arange(quarter) / quarter)

        def waves(n: int) -> jax.Array:  # made in float64 and rounded to float32, as published weights have them
            angle = places[n][:, None] * frequency
            table = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32)
            return jnp.asarray(table, wide(self.dtype))

        shape = (h, w, 2 * quarter)
        columns, rows = jnp.broadcast_to(waves(w)[None], shape), jnp.broadcast_to(waves(h)[:, None], shape)
        return jnp.concatenate([columns, rows], axis=-1).reshape(h * w, -1)

    @nn.nowrap
    def table(self, h: int, w: int, head_width: int) -> tuple[jax.Array, ...]:
        """Returns the RoPE table of a grid of patches for heads of that width."""
        return rope_table(h, w, head_width, dtype=wide(self.dtype))
