"""Buckets: the shapes (height, width) that images are brought to, and which image goes to which of them.

An image goes to the bucket of nearest aspect ratio among those that it covers without being enlarged, and to the
largest of those of equal ratio. It is resized to cover its bucket and cropped, never stretched.
"""

import dataclasses

import numpy as np

MAX_BUCKETS = 64
TOO_SMALL, TOO_MUCH_CROPPED, UNUSABLE = -1, -2, -3
CHUNK = 2**16

Shape = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Grid:
    """What the shape and the batch size of a bucket must be multiples of.

    Attributes:
        side: pixels, or latent positions, per token and direction, codec and patch together; height and width are
            multiples of it.
        tokens_multiple: devices that share the tokens of an example (the mesh's sequence axis); the number of tokens is
            a multiple of it.
        batch_multiple: devices that share the examples of a batch, times microbatches; the batch size is a multiple of
            it.
    """

    side: int = 1
    tokens_multiple: int = 1
    batch_multiple: int = 1

    def tokens(self, shape: Shape) -> int:
        """The number of tokens of an example of this shape."""
        return (shape[0] // self.side) * (shape[1] // self.side)


@dataclasses.dataclass(frozen=True)
class Fitting:
    """How images are fitted to buckets.

    Attributes:
        max_cropped: the largest share of an image's area that may be cropped away, in [0, 1); images that would lose
            more are not used.
        enlarge: whether images too small for every bucket are enlarged.
        resize: False for latents, which can be cropped but not resized.
    """

    max_cropped: float = 0.5
    enlarge: bool = False
    resize: bool = True

    def check(self) -> None:
        """Raises ValueError for a share outside [0, 1)."""
        if not 0 <= self.max_cropped < 1:
            raise ValueError(f"data.buckets.max_cropped is {self.max_cropped}; it must lie in [0, 1)")


def check_table(table: tuple[Shape, ...], grid: Grid) -> tuple[Shape, ...]:
    """Checks a table of bucket shapes.

    Args:
        table: the shapes.
        grid: what they must be multiples of.

    Returns:
        The table, largest area first.

    Raises:
        ValueError: patch, codec or mesh do not divide a shape, a shape comes twice, or there are none or more than
            MAX_BUCKETS.
    """
    if not 1 <= len(table) <= MAX_BUCKETS:
        raise ValueError(f"data.buckets.table is of {len(table)} shapes; it must have 1 to {MAX_BUCKETS}")
    for shape in table:
        whole = len(shape) == 2 and all(isinstance(size, int) and size > 0 for size in shape)
        if not whole or shape[0] % grid.side or shape[1] % grid.side:
            raise ValueError(
                f"data.buckets.table is {table}; each of them must have a height and a width that are positive "
                f"multiples of {grid.side} (codec times patch), and {tuple(shape)} has not"
            )
        if grid.tokens(shape) % grid.tokens_multiple:
            raise ValueError(
                f"data.buckets.table is {table}; each of them must have a multiple of mesh.sequence, "
                f"{grid.tokens_multiple}, tokens, and {tuple(shape)} has {grid.tokens(shape)}"
            )
    if len(set(map(tuple, table))) < len(table):
        raise ValueError(f"data.buckets.table is {table}; it must have each shape once")
    return ordered(table)


def ordered(table: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """Sorts a table by area, the largest first, so that the first of equally near shapes is the largest."""
    return tuple(sorted(((int(h), int(w)) for h, w in table), key=lambda shape: (-shape[0] * shape[1], shape)))


def batch_size_of(shape: Shape, grid: Grid, tokens: int, batch_size: int) -> int:
    """The size of a global batch of a shape.

    Args:
        shape: of its examples.
        grid: what it must be a multiple of.
        tokens: the budget of tokens: as many examples as fit, rounded down to a multiple of grid.batch_multiple, and at
            least that many. 0 for no budget.
        batch_size: the size for any shape, where tokens is 0.
    """
    if not tokens:
        return batch_size
    multiple = grid.batch_multiple
    return max(tokens // grid.tokens(shape) // multiple, 1) * multiple


def assign(
    height: np.ndarray, width: np.ndarray, table: tuple[Shape, ...], fitting: Fitting
) -> tuple[np.ndarray, np.ndarray]:
    """Assigns images to buckets.

    Args:
        height, width: of the images, (n,); 0 for those that cannot be used.
        table: shapes of the buckets, the largest area first.
        fitting: what may be enlarged or cropped.

    Returns:
        The bucket of each image, int16 (n,), and the share that is cropped away, float32 (n,). An image that is in no
        bucket has TOO_SMALL, TOO_MUCH_CROPPED or UNUSABLE for a bucket, and the share 0.
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
    return found.astype(np.int16), np.where(found >= 0, np.maximum(share, 0), 0).astype(np.float32)
