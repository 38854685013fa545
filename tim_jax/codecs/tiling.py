"""Tiling: a function of images or latents that are too large for an accelerator, on overlapping tiles, blended."""

import math
from collections.abc import Callable
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np


def tiled(f: Callable, x_BHWC, tile: int, overlap: int):
    """Computes f(x) from f of overlapping tiles, one after the other.

    Neighbouring tiles fade into one another over at least `overlap` places, so that there is no seam where they differ
    (norms and attention see one tile only). An x no larger than a tile is passed to f as it is.

    Args:
        f: maps (B, h, w, C) to (B, s h, s w, D), with the same s for all sizes, less than 1 for an encoder.
        x_BHWC: images or latents.
        tile: side of a tile, in places of x.
        overlap: of neighbouring tiles, in places of x.

    Returns:
        (B, s H, s W, D).

    Raises:
        ValueError: if overlap is not in 1 ... tile / 2, or a side of f's result is no whole number.
    """
    if not 1 <= overlap <= tile // 2:
        raise ValueError(f"overlap of tiles is {overlap}; it must be from 1 to half of the tile's side, {tile}")
    B, H, W, C = x_BHWC.shape
    h, w = min(H, tile), min(W, tile)
    if (h, w) == (H, W):
        return f(x_BHWC)
    result = jax.eval_shape(f, jax.ShapeDtypeStruct((B, h, w, C), x_BHWC.dtype))
    scale = Fraction(result.shape[1], h)
    for name, value in {"height": H, "width": W, "tile": tile, "overlap": overlap}.items():
        if value % scale.denominator:
            raise ValueError(f"{name} is {value}; it must be a multiple of {scale.denominator}")
    rows, row_weights = _along(H, h, overlap, scale)
    columns, column_weights = _along(W, w, overlap, scale)

    def add(sum_BHWD, place):
        (y, x), (weight_h, weight_w) = place
        part = f(jax.lax.dynamic_slice_in_dim(jax.lax.dynamic_slice_in_dim(x_BHWC, y, h, 1), x, w, 2))
        part *= (weight_h[:, None] * weight_w[None])[None, :, :, None].astype(part.dtype)
        at = (0, y * scale.numerator // scale.denominator, x * scale.numerator // scale.denominator, 0)
        there = jax.lax.dynamic_slice(sum_BHWD, at, part.shape)
        return jax.lax.dynamic_update_slice(sum_BHWD, there + part, at), None

    i, j = (grid.ravel() for grid in np.meshgrid(range(len(rows)), range(len(columns)), indexing="ij"))
    places = ((rows[i], columns[j]), (row_weights[i], column_weights[j]))
    zeros = jnp.zeros((B, int(H * scale), int(W * scale), result.shape[-1]), result.dtype)
    return jax.lax.scan(add, zeros, jax.tree.map(jnp.asarray, places))[0]


def _along(size: int, tile: int, overlap: int, scale: Fraction) -> tuple[np.ndarray, np.ndarray]:
    """Returns (starts, weights) of tiles along one side: (n,) in places of x, and (n, scale · tile), summing to 1."""
    n = 1 if size == tile else math.ceil((size - overlap) / (tile - overlap))
    unit = scale.denominator
    starts = np.rint(np.linspace(0, (size - tile) // unit, n)).astype(np.int32) * unit
    side, width = int(tile * scale), float(overlap * scale)
    total, spans, weights = np.zeros(int(size * scale)), [], []
    for start in starts:
        span = slice(int(start * scale), int(start * scale) + side)
        inner = np.arange(side) + 0.5  # distance from a side of the tile
        near = np.minimum(inner if start else np.inf, inner[::-1] if start + tile < size else np.inf)
        # Places next to a side that is not the image's have no weight: convolutions saw zeros beyond it.
        weights.append(np.sin(0.5 * np.pi * np.clip((near / width - 0.25) / 0.5, 0, 1)) ** 2 * np.ones(side))
        total[span] += weights[-1]
        spans.append(span)
    shares = [weight / total[span] for weight, span in zip(weights, spans, strict=True)]
    return starts, np.stack(shares).astype(np.float32)
