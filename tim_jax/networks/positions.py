"""Fixed two-dimensional sine-cosine position embedding of patches (Vaswani et al., arXiv 1706.03762, on a grid).

The first half of the D values embeds the column of a patch, the second half its row, as published diffusion
transformers have it (DiT, arXiv 2212.09748). Of a position p these are the sines, then the cosines, of
p · 10000^(−4k/D), k = 0 … D/4 − 1.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def sincos_table(
    h: int, w: int, width: int, trained: tuple[int, int] | None = None, dtype: Any = jnp.float32
) -> jax.Array:
    """Returns the embeddings (N, D) of the N = h w patches of a grid, row by row.

    The values are those of float32 in every type, as they stand in published weights.

    Args:
        h, w: Height and width of the grid.
        width: D, a multiple of 4.
        trained: Height and width of the grid that a network was trained on. Patches of another one then lie where they
            would lie if both grids covered the same square: the embedding is interpolated. None: a patch at row i and
            column j lies at (i, j) on every grid.
        dtype: The type of the table.
    """
    rows, columns = (_line(n, width // 2, side) for n, side in zip((h, w), trained or (h, w), strict=True))
    shape = (h, w, width // 2)  # only the two lines are constants of the program, not the table
    parts = [jnp.broadcast_to(columns[None], shape), jnp.broadcast_to(rows[:, None], shape)]
    return jnp.concatenate(parts, axis=-1).reshape(h * w, width).astype(dtype)


def _line(n: int, width: int, trained: int) -> np.ndarray:
    """Returns the embeddings (n, width) of n positions that cover as much as `trained` ones, in float32."""
    position = (np.arange(n) + 0.5) * (trained / n) - 0.5
    frequency = 1 / 10000 ** (np.arange(width // 2) / (width / 2))
    angle = position[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32)
