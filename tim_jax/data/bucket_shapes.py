"""Makes a table of bucket shapes from the sizes of the images."""

import dataclasses
from collections.abc import Callable

import numpy as np

from tim_jax.data.buckets import CHUNK, MAX_BUCKETS, Fitting, Grid, Shape, ordered

MERGE, MOVE, LEAVE = range(3)


@dataclasses.dataclass(frozen=True)
class _Groups:
    """Images by the bucket that they are meant for.

    Attributes:
        shape: of the bucket, int64 (k, 2).
        images: how many there are, (k,).
        needed: how many make a batch, (k,).
        smallest: the smallest height and width among them, (k, 2).
    """

    shape: np.ndarray
    images: np.ndarray
    needed: np.ndarray
    smallest: np.ndarray

    def __len__(self) -> int:
        return len(self.shape)

    def without(self, group: int) -> "_Groups":
        """All groups but one."""
        arrays = (getattr(self, field.name) for field in dataclasses.fields(self))
        return _Groups(*(np.delete(array, group, axis=0) for array in arrays))

    def merged(self, members: np.ndarray, shape: np.ndarray, needed: int) -> "_Groups":
        """These groups with some of them made one, the last, of a given shape."""
        rest = np.setdiff1d(np.arange(len(self)), members)
        return _Groups(
            np.concatenate([self.shape[rest], shape[None]]),
            np.append(self.images[rest], self.images[members].sum()),
            np.append(self.needed[rest], needed),
            np.concatenate([self.smallest[rest], self.smallest[members].min(0)[None]]),
        )


def derive(
    height: np.ndarray,
    width: np.ndarray,
    grid: Grid,
    area: int,
    batch_size: Callable[[Shape], int],
    max_buckets: int = MAX_BUCKETS,
    fitting: Fitting = Fitting(),
    keep_rare: bool = False,
) -> tuple[Shape, ...]:
    """Makes a table of bucket shapes from the sizes of the images.

    It starts from each image's own shape: its size, shrunk if its area is above `area`, rounded down to the grid. Then
    the rarest shape is given up, until there are at most `max_buckets` shapes and each has images for one batch. Of
    these ways to give it up the one that loses the fewest pixels is taken:

    - with another shape it becomes the largest shape inside both, unless it has too few images for a batch and the
      other has enough: a shape that is too rare never shrinks one that is not;
    - its images go to the bucket of another shape as that is;
    - its images are left out.

    Args:
        height, width: of the images, (n,).
        grid: what shapes must be multiples of.
        area: the largest height x width of a bucket.
        batch_size: shape -> the size of its global batch.
        max_buckets: the largest number of shapes.
        fitting: what may be enlarged or cropped.
        keep_rare: whether the first way alone is taken, whatever it costs the other shape.

    Returns:
        The shapes, the largest area first.

    Raises:
        ValueError: no image is as large as one token.
    """
    groups = _own_groups(height, width, grid, area, batch_size, fitting.resize)
    if not len(groups):
        size = f"{grid.side}x{grid.side}"
        raise ValueError(
            f"data.buckets.area is {area}; it must suit images as large as one token, {size}, and there is none"
        )
    while len(groups) > 1:
        rarest = int(np.argmin(groups.images / groups.needed))
        if len(groups) <= max_buckets and groups.images[rarest] >= groups.needed[rarest]:
            break
        inside = np.minimum(groups.shape, groups.shape[rarest])
        costs = _costs(groups, rarest, inside, Fitting(max_cropped=1) if keep_rare else fitting, keep_rare)
        way, other = divmod(int(np.argmin(costs)), len(groups))
        if way == LEAVE:
            groups = groups.without(rarest)
            continue
        shape = inside[other] if way == MERGE else groups.shape[other]
        same = np.flatnonzero((groups.shape == shape).all(1))
        members = np.union1d(same, (rarest, other))
        groups = groups.merged(members, shape, batch_size((int(shape[0]), int(shape[1]))))
    return ordered(tuple((h, w) for h, w in groups.shape.tolist()))


def _costs(groups: _Groups, rarest: int, inside: np.ndarray, fitting: Fitting, keep_rare: bool) -> np.ndarray:
    """What it costs to give up the rarest of k shapes, in images: a cropped or shrunk one counts by what it loses.

    Returns:
        (2 k + 1,): to MERGE it with each other shape to the shape `inside` both (k, 2), to MOVE its images to each
        other's bucket, and to LEAVE them out; infinite for what is not allowed.
    """
    shape, images, own = groups.shape, groups.images, groups.shape[rarest]
    short = groups.images < groups.needed
    merge = images[rarest] * _lost(own, inside, fitting) + images * _lost(shape, inside, fitting)
    move = images[rarest] * _lost(own, shape, fitting)
    covered = (shape <= groups.smallest[rarest]).all(1) | (fitting.enlarge and fitting.resize)
    move[~covered | (move >= images[rarest])] = np.inf
    merge[rarest] = move[rarest] = np.inf
    if keep_rare:
        return np.concatenate([merge, np.full(len(groups) + 1, np.inf)])
    merge[short[rarest] & ~short] = np.inf
    return np.concatenate([merge, move, images[rarest : rarest + 1]])


def _lost(shape: np.ndarray, bucket: np.ndarray, fitting: Fitting) -> np.ndarray:
    """The share of its own shape (2,) or (k, 2) that an image loses in buckets (k, 2); 1 if it is left out."""
    scale = (bucket / shape).max(1) if fitting.resize else 1.0
    kept = bucket.prod(1) / shape.prod(-1)
    cropped = 1 - kept / scale**2
    return np.where(cropped > fitting.max_cropped, 1.0, np.maximum(cropped, 1 - kept))


def _own_groups(
    height: np.ndarray, width: np.ndarray, grid: Grid, area: int, batch_size: Callable[[Shape], int], resize: bool
) -> _Groups:
    """The images by their own shape, in order of shape."""
    found: dict[Shape, tuple[int, np.ndarray]] = {}
    for start in range(0, len(height), CHUNK):
        part = slice(start, start + CHUNK)
        size = np.stack([np.asarray(height[part]), np.asarray(width[part])], 1)
        own = own_shape(size[:, 0], size[:, 1], grid, area, resize)
        usable = (own > 0).all(1)
        shapes, at, numbers = np.unique(own[usable], axis=0, return_inverse=True, return_counts=True)
        smallest = np.full(shapes.shape, np.iinfo(np.int64).max)
        np.minimum.at(smallest, at.reshape(-1), size[usable])
        for shape, number, least in zip(map(tuple, shapes.tolist()), numbers.tolist(), smallest, strict=True):
            before, at_least = found.get(shape, (0, least))
            found[shape] = before + number, np.minimum(least, at_least)
    listed = sorted(found)
    return _Groups(
        np.array(listed, np.int64).reshape(-1, 2),
        np.array([found[shape][0] for shape in listed], np.float64),
        np.array([batch_size(shape) for shape in listed], np.float64),
        np.array([found[shape][1] for shape in listed], np.int64).reshape(-1, 2),
    )


def own_shape(height: np.ndarray, width: np.ndarray, grid: Grid, area: int, resize: bool = True) -> np.ndarray:
    """The shape of each image by itself, see `derive`: int64 (n, 2), 0 where the image is smaller than a token."""
    size = np.stack([height, width], 1).astype(np.float64)
    pixels = np.maximum(size.prod(1, keepdims=True), 1)
    scale = np.minimum(1, np.sqrt(area / pixels)) if resize else 1.0
    # The number of lines of tokens is a multiple, so that the mesh divides every shape and every merger of two.
    unit = np.array([grid.side * grid.tokens_multiple, grid.side])
    shape = np.floor(size * scale / unit + 1e-9).astype(np.int64) * unit
    return np.where((shape > 0).all(1, keepdims=True), shape, 0)
