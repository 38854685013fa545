"""Two-dimensional rotary position embedding (Su et al., arXiv 2104.09864, on a grid of patches).

The K values of a head form K/2 pairs (2i, 2i+1). The first half of the pairs turns with the row of a patch, the second
half with its column, each pair at its own frequency, so that q·k depends on relative rows and columns only.
"""

import jax.numpy as jnp

# Token n of an h x w grid -> (row, column). Tokens are laid out row by row. The published code pairs token n with
# (n mod h, n div h): the transpose of a square grid, a scrambled order for any other; its weights need it.
ORDERS = {
    "row_major": lambda n, h, w: (n // w, n % w),
    "official": lambda n, h, w: (n % h, n // h),
}


def rope_table(h: int, w: int, head_width: int, order: str = "row_major", dtype=jnp.float32):
    """(cos, sin), each (N, K/2), of the angles position * 10000^(-4 i / K), i = 0 .. K/4 - 1, for N = h w patches."""
    row, column = ORDERS[order](jnp.arange(h * w), h, w)
    frequency = 10000.0 ** (-jnp.arange(0, head_width // 2, 2, dtype=dtype) / (head_width // 2))
    angles = [p.astype(dtype)[:, None] * frequency[None, :] for p in (row, column)]
    angle = jnp.concatenate(angles, axis=-1)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BNHK, table):
    """Turn each interleaved pair of x by its angle: (a, b) -> (a cos - b sin, b cos + a sin). float32 at least."""
    cos, sin = (part[None, :, None, :] for part in table)
    a, b = x_BNHK[..., 0::2], x_BNHK[..., 1::2]
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x_BNHK.shape)
