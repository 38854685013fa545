"""Buckets: the (height, width) shapes that images are brought to, and which image goes to which.

An image goes to the bucket of nearest aspect ratio among those it covers without being enlarged; of equal ratios, to
the largest. It is resized to cover its bucket and cropped, never stretched.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable

import numpy as np

MOST_BUCKETS = 64
TOO_SMALL, TOO_MUCH_CROPPED, UNUSABLE = -1, -2, -3
CHUNK = 2**16

Shape = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Grid:
    """What the shape of a bucket and its rows must fit.

    side: pixels (or latent positions) per token and direction, codec and patch together, which height and width must
    be multiples of. tokens_multiple: devices that share the tokens of a row (the mesh's sequence axis), which must
    divide their number. rows_multiple: devices that share the rows, times microbatches.
    """

    side: int = 1
    tokens_multiple: int = 1
    rows_multiple: int = 1

    def tokens(self, shape: Shape) -> int:
        """Tokens of a row of this shape."""
        return (shape[0] // self.side) * (shape[1] // self.side)


@dataclasses.dataclass(frozen=True)
class Fitting:
    """How images are fitted to buckets.

    max_cropped: the largest share of an image's area that may be cut off; images that would lose more are not used.
    enlarge: whether images too small for every bucket are enlarged. resize: False for latents, which can be cropped
    but not resized.
    """

    max_cropped: float = 0.5
    enlarge: bool = False
    resize: bool = True


def check_table(table: tuple[Shape, ...], grid: Grid) -> tuple[Shape, ...]:
    """The table, largest area first. Raises ValueError for a shape that patch, codec or mesh do not divide, a shape
    that comes twice, no shape at all or more than MOST_BUCKETS."""
    if not 1 <= len(table) <= MOST_BUCKETS:
        raise ValueError(f"data.buckets.table has {len(table)} shapes; it must have 1 to {MOST_BUCKETS}")
    for shape in table:
        whole = len(shape) == 2 and all(isinstance(size, int) and size > 0 for size in shape)
        if not whole or shape[0] % grid.side or shape[1] % grid.side:
            raise ValueError(
                f"data.buckets.table has {tuple(shape)}; height and width must be positive multiples of {grid.side} "
                "(codec times patch)"
            )
        if grid.tokens(shape) % grid.tokens_multiple:
            raise ValueError(
                f"data.buckets.table has {tuple(shape)} with {grid.tokens(shape)} tokens; their number must be a "
                f"multiple of mesh.sequence, {grid.tokens_multiple}"
            )
    if len(set(map(tuple, table))) < len(table):
        raise ValueError(f"data.buckets.table has {len(table) - len(set(map(tuple, table)))} shapes twice; each once")
    return ordered(table)


def ordered(table: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """Largest area first, so that of equally near shapes the first is the largest."""
    return tuple(sorted(((int(h), int(w)) for h, w in table), key=lambda shape: (-shape[0] * shape[1], shape)))


def rows_per_batch(shape: Shape, grid: Grid, tokens: int, rows: int) -> int:
    """Rows of a global batch: as many as fit into `tokens` tokens, rounded down to a multiple of grid.rows_multiple,
    and at least that; `rows` of every shape where tokens is 0."""
    if not tokens:
        return rows
    multiple = grid.rows_multiple
    return max(tokens // grid.tokens(shape) // multiple, 1) * multiple


def assign(height: np.ndarray, width: np.ndarray, table: tuple[Shape, ...], fitting: Fitting) -> tuple:
    """(bucket int16 (n,), share cropped away float32 (n,)) of images of the given sizes (n,).

    bucket is TOO_SMALL, TOO_MUCH_CROPPED, or UNUSABLE (height or width 0) where there is none, and the share then 0.
    table: largest area first.
    """
    bucket, share = np.empty(len(height), np.int16), np.empty(len(height), np.float32)
    shapes = np.array(table, np.float64)
    for start in range(0, len(height), CHUNK):
        part = slice(start, start + CHUNK)
        h, w = np.asarray(height[part], np.float64), np.asarray(width[part], np.float64)
        bucket[part], share[part] = _assign(h, w, shapes, fitting)
    return bucket, share


def _assign(h: np.ndarray, w: np.ndarray, shapes: np.ndarray, fitting: Fitting) -> tuple[np.ndarray, np.ndarray]:
    usable = (h > 0) & (w > 0)
    h, w = np.where(usable, h, 1.0)[:, None], np.where(usable, w, 1.0)[:, None]
    H, W = shapes[None, :, 0], shapes[None, :, 1]
    cover = np.maximum(H / h, W / w)
    scale = cover if fitting.resize else np.ones_like(cover)
    fits = (cover <= 1) | (fitting.enlarge and fitting.resize)
    # Ratios that differ by rounding alone count as equal.
    distance = np.round(np.abs(np.log((h / w) / (H / W))), 9)
    distance = np.where(fits, distance, np.inf)
    if fitting.enlarge:  # enlarged only where no bucket is small enough
        whole = (cover <= 1).any(1, keepdims=True)
        distance = np.where(whole & (cover > 1), np.inf, distance)
    chosen = np.argmin(distance, axis=1)
    at = np.arange(len(chosen))
    share = 1 - (H * W / (h * w * scale**2))[at, chosen]
    found = np.where(share <= fitting.max_cropped + 1e-9, chosen, TOO_MUCH_CROPPED)
    found = np.where(fits.any(1), found, TOO_SMALL)
    found = np.where(usable, found, UNUSABLE)
    return found.astype(np.int16), np.where(found >= 0, share, 0).astype(np.float32)


def derive(
    height: np.ndarray,
    width: np.ndarray,
    grid: Grid,
    area: int,
    rows: Callable[[Shape], int],
    most: int = MOST_BUCKETS,
    resize: bool = True,
) -> tuple[Shape, ...]:
    """A table from the sizes (n,) of the images: each image's own shape, and where these are too many, their merger.

    An image's own shape is its size, made smaller if its area is above `area`, rounded down to the grid. Then the
    rarest shape is merged with another into the largest shape inside both, the one that costs the fewest pixels, until
    there are at most `most` shapes and each has images for one batch. So no image becomes too small by it.
    rows: shape -> rows of its global batch. Raises ValueError if no image is as large as one token.
    """
    counts = Counter()
    for start in range(0, len(height), CHUNK):
        part = slice(start, start + CHUNK)
        own = own_shape(np.asarray(height[part]), np.asarray(width[part]), grid, area, resize)
        shapes, numbers = np.unique(own[(own > 0).all(1)], axis=0, return_counts=True)
        for shape, number in zip(shapes.tolist(), numbers.tolist(), strict=True):
            counts[tuple(shape)] += number
    if not counts:
        raise ValueError(f"data.buckets.area: no image is as large as {grid.side} by {grid.side}")
    shapes = np.array(sorted(counts), np.int64)
    numbers = np.array([counts[tuple(shape)] for shape in shapes.tolist()], np.float64)
    needed = np.array([rows(tuple(shape)) for shape in shapes.tolist()], np.float64)
    while len(shapes) > 1:
        rarest = int(np.argmin(numbers / needed))
        if len(shapes) <= most and numbers[rarest] >= needed[rarest]:
            break
        inside = np.minimum(shapes, shapes[rarest])
        kept = inside.prod(1)
        lost = numbers[rarest] * (1 - kept / kept[rarest]) + numbers * (1 - kept / shapes.prod(1))
        lost[rarest] = np.inf
        other = int(np.argmin(lost))
        merged, total = inside[other], numbers[rarest] + numbers[other]
        same = np.flatnonzero((shapes == merged).all(1))
        left = np.setdiff1d(np.arange(len(shapes)), (rarest, other, *same))
        total += sum(numbers[i] for i in same if i not in (rarest, other))
        shapes = np.concatenate([shapes[left], merged[None]])
        numbers, needed = np.append(numbers[left], total), np.append(needed[left], rows(tuple(merged.tolist())))
    return ordered(tuple(map(tuple, shapes.tolist())))


def own_shape(height: np.ndarray, width: np.ndarray, grid: Grid, area: int, resize: bool = True) -> np.ndarray:
    """The shape (n, 2) of each image by itself, 0 where it is smaller than a token."""
    size = np.stack([height, width], 1).astype(np.float64)
    pixels = np.maximum(size.prod(1, keepdims=True), 1)
    scale = np.minimum(1, np.sqrt(area / pixels)) if resize else 1.0
    # Rows of tokens in whole shares, so that the mesh divides every shape and every merger of two.
    unit = np.array([grid.side * grid.tokens_multiple, grid.side])
    shape = np.floor(size * scale / unit + 1e-9).astype(np.int64) * unit
    return np.where((shape > 0).all(1, keepdims=True), shape, 0)
