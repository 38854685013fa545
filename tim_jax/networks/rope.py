"""Two-dimensional rotary position embedding (Su et al., arXiv 2104.09864, on a grid of patches).

The K values of a head form K/2 pairs (2i, 2i+1). The first half of the pairs is rotated by the row of a patch, the
second half by its column, each pair at its own frequency, so that q·k depends on relative rows and columns only.
"""

from typing import Any

import jax
import jax.numpy as jnp

# Token n of an h x w grid -> (row, column). Tokens are laid out row by row. The published code pairs token n with
# (n mod h, n div h), which is the transpose of a square grid and a scrambled order of any other; its weights need it.
ORDERS = {
    "row_major": lambda n, h, w: (n // w, n % w),
    "official": lambda n, h, w: (n % h, n // h),
}


def rope_table(
    h: int, w: int, head_width: int, order: str = "row_major", dtype: Any = jnp.float32
) -> tuple[jax.Array, jax.Array]:
    """Returns (cos, sin), each (N, K/2), of the angles position * 10000^(-4 i / K), i = 0 .. K/4 - 1.

    Args:
        h, w: Height and width of the grid of N = h w patches.
        head_width: The width K of a head, a multiple of 4.
        order: A name in ORDERS.
        dtype: The type of the table.
    """
    row, column = ORDERS[order](jnp.arange(h * w), h, w)
    frequency = 10000.0 ** (-jnp.arange(0, head_width // 2, 2, dtype=dtype) / (head_width // 2))
    angles = [p.astype(dtype)[:, None] * frequency[None, :] for p in (row, column)]
    angle = jnp.concatenate(angles, axis=-1)
    return jnp.cos(angle), jnp.sin(angle)


def spread_rope_table(
    h: int, w: int, head_width: int, extent: float = 16, dtype: Any = jnp.float32
) -> tuple[jax.Array, jax.Array]:
    """Returns (cos, sin), each (N, K/2), of positions relative to the grid (DDT, arXiv 2504.05741).

    The rows of any grid are spread evenly over 0 … `extent`, and so are its columns. Pairs turn by the column and by
    the row alternately, pairs 2 i and 2 i + 1 by position * 10000^(-4 i / K), i = 0 .. K/4 - 1.

    Args:
        h, w: Height and width of the grid of N = h w patches.
        head_width: The width K of a head, a multiple of 4.
        extent: The position of the last row, and of the last column.
        dtype: The type of the table.
    """
    frequency = 10000.0 ** (-jnp.arange(0, head_width, 4, dtype=dtype) / head_width)
    rows, columns = (jnp.linspace(0, extent, n, dtype=dtype)[:, None] * frequency[None, :] for n in (h, w))
    shape = (h, w, head_width // 4)
    pair = jnp.broadcast_to(columns[None], shape), jnp.broadcast_to(rows[:, None], shape)
    angle = jnp.stack(pair, axis=-1).reshape(h * w, head_width // 2)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BNHK: jax.Array, table: tuple[jax.Array, ...]) -> jax.Array:
    """Rotates each interleaved pair of x by its angle: (a, b) -> (a cos - b sin, b cos + a sin), float32 at least."""
    cos, sin = (part[None, :, None, :] for part in table)
    a, b = x_BNHK[..., 0::2], x_BNHK[..., 1::2]
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x_BNHK.shape)
