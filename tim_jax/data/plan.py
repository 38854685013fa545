"""The bucket plan: which images make up which bucket, and the size of a bucket's global batches."""

import dataclasses
import functools
from fractions import Fraction
from typing import Any

import numpy as np
from etils import epath

from tim_jax.data import tables
from tim_jax.data.bucket_shapes import derive
from tim_jax.data.buckets import (
    CHUNK,
    MAX_BUCKETS,
    TOO_MUCH_CROPPED,
    TOO_SMALL,
    Fitting,
    Grid,
    Shape,
    assign,
    batch_size_of,
    check_table,
)
from tim_jax.data.sizes import Sizes
from tim_jax.data.sources.base import PickledByFields, Source, digest

FORMAT = "plan 2"


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A bucket of a plan.

    Attributes:
        height, width: of its examples.
        batch_size: of a global batch.
        images: how many there are from each part of the source; a mixture has several parts.
        cropped: the mean share of an image that is cropped away.
        amount: examples drawn from each part per epoch.
    """

    height: int
    width: int
    batch_size: int
    images: tuple[int, ...]
    cropped: float
    amount: tuple[Fraction, ...]

    @property
    def shape(self) -> Shape:
        """(height, width)."""
        return self.height, self.width


@dataclasses.dataclass(frozen=True)
class BucketPlan(PickledByFields):
    """Which images make up which bucket.

    Attributes:
        buckets: all of them have images.
        not_used: reason -> how many images are in no bucket for it.
        fitting: how images are brought to the shape of their bucket.
        folder: of the table of members; "" where the one bucket holds all examples in order.
    """

    buckets: tuple[Bucket, ...]
    not_used: dict[str, int]
    fitting: Fitting
    folder: str = ""

    @functools.cached_property
    def _members(self) -> np.ndarray | None:
        return tables.Table(epath.Path(self.folder))["row"] if self.folder else None

    @functools.cached_property
    def _starts(self) -> dict[tuple[int, int], int]:
        cells = [((k, i), n) for k, bucket in enumerate(self.buckets) for i, n in enumerate(bucket.images)]
        ends = np.cumsum([n for _, n in cells]).tolist()
        return {cell: end - n for (cell, n), end in zip(cells, ends, strict=True)}

    def indices(self, bucket: int, part: int, numbers: np.ndarray) -> np.ndarray:
        """Finds members of a bucket.

        Args:
            bucket: the number of the bucket.
            part: the number of a part of the source.
            numbers: which of the images that the bucket has from this part, (n,).

        Returns:
            Their indices in the source, int64 (n,).
        """
        at = numbers + self._starts[bucket, part]
        return at if self._members is None else np.asarray(self._members[at], np.int64)

    def images(self) -> int:
        """The number of images that are in buckets."""
        return sum(sum(bucket.images) for bucket in self.buckets)


@dataclasses.dataclass(frozen=True)
class Bucketing:
    """How a plan is made.

    Attributes:
        table: the shapes of the buckets; () derives them from the sizes of the images.
        area: the largest height x width of a shape that is derived.
        max_buckets: the largest number of shapes that are derived.
        keep_rare: whether shapes are derived that rare images fit too, see `derive`.
        tokens: the budget of tokens of a global batch over all its examples; 0 for batches of `batch_size`.
        batch_size: the size of a global batch of any shape, where tokens is 0.
        grid: what shapes and batch sizes must be multiples of.
        fitting: how images are brought to the shape of their bucket.
    """

    table: tuple[Shape, ...] = ()
    area: int = 0
    max_buckets: int = MAX_BUCKETS
    keep_rare: bool = False
    tokens: int = 0
    batch_size: int = 0
    grid: Grid = Grid()
    fitting: Fitting = Fitting()

    def check(self) -> None:
        """Raises ValueError for a setting that is not allowed."""
        if self.table:
            check_table(self.table, self.grid)
        elif self.area < self.grid.side**2:
            raise ValueError(
                f"data.buckets.area is {self.area}; it must be at least {self.grid.side**2}, the area of one token, "
                "where data.buckets.table is empty"
            )
        if not 1 <= self.max_buckets <= MAX_BUCKETS:
            raise ValueError(f"data.buckets.max_buckets is {self.max_buckets}; it must be 1 to {MAX_BUCKETS}")
        self.fitting.check()
        if self.tokens < 0 or (not self.tokens and self.batch_size < 1):
            raise ValueError(
                f"data.buckets.tokens is {self.tokens}; it must be above 0, or 0 with a data.batch_size above 0, which "
                f"is {self.batch_size}"
            )
        if not self.tokens and self.batch_size % self.grid.batch_multiple:
            raise ValueError(
                f"data.batch_size is {self.batch_size}; it must be a multiple of {self.grid.batch_multiple}"
            )

    def batch_size_of(self, shape: Shape) -> int:
        """The size of a global batch of a shape, where there are images enough."""
        return batch_size_of(shape, self.grid, self.tokens, self.batch_size)


def one_bucket(source: Source, batch_size: int, shape: Shape | None = None) -> BucketPlan:
    """The plan of a source whose images are all of one size: one bucket with all of them.

    Args:
        source: of the images.
        batch_size: of a global batch.
        shape: their (height, width); by default as the source says.

    Raises:
        ValueError: images differ in size, the source is empty, or the batch size is below 1.
    """
    height, width = shape or source.image_shape[:2]
    if not height or not width:
        raise ValueError(
            f"data.source is {source.name}; it must have images of one size, or else data.buckets.area or table be "
            "given"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if not len(source):
        raise ValueError(f"data.source is {source.name}; it must have at least one example")
    images = tuple(n for n, _ in source.parts)
    amount = tuple(n * passes for n, passes in source.parts)
    return BucketPlan((Bucket(height, width, batch_size, images, 0.0, amount),), {}, Fitting())


def make_plan(source: Source, sizes: Sizes, how: Bucketing, directory: Any) -> BucketPlan:
    """Makes the plan of a source.

    A bucket that lacks images for one batch gets smaller batches; one that lacks them for the smallest batch that the
    mesh allows is given up, and its images go to others.

    Args:
        source: of the images.
        sizes: of all its images.
        how: the settings.
        directory: the folder that the table of members is written below, and read from where it is there already.

    Raises:
        ValueError: a setting is not allowed, or no image fits a bucket.
    """
    how.check()
    bad = np.flatnonzero(np.asarray(sizes.height) == 0).tobytes() if sizes.bad else b""
    key = digest(FORMAT, source.fingerprint(), dataclasses.astuple(how), source.parts, bad)
    folder = epath.Path(directory).expanduser() / f"plan-{key}"
    if not tables.exists(folder):
        _write(source, sizes, how, folder)
    meta = tables.Table(folder).meta
    buckets = []
    for (height, width), batch_size, images, cropped in meta["buckets"]:
        amount = tuple(n * passes for n, (_, passes) in zip(images, source.parts, strict=True))
        buckets.append(Bucket(height, width, batch_size, tuple(images), cropped, amount))
    return BucketPlan(tuple(buckets), meta["not_used"], how.fitting, str(folder))


def _write(source: Source, sizes: Sizes, how: Bucketing, folder: epath.Path) -> None:
    """Writes the table of members of all buckets."""
    table, bucket, share = _settle(sizes, how)
    ends = np.cumsum([n for n, _ in source.parts])
    not_used = {"too small": np.sum(bucket == TOO_SMALL), "cropped too much": np.sum(bucket == TOO_MUCH_CROPPED)}
    not_used |= sizes.bad
    described = []
    with tables.writing(folder, row=np.uint32 if len(source) < 2**32 else np.int64) as writer:
        for k, shape in enumerate(table):
            images, cropped = np.zeros(len(ends), np.int64), 0.0
            for start in range(0, len(bucket), CHUNK * 16):
                part = slice(start, start + CHUNK * 16)
                found = np.flatnonzero(bucket[part] == k)
                writer.append(row=found + start)
                images += np.bincount(np.searchsorted(ends, found + start, "right"), minlength=len(ends))
                cropped += float(share[part][found].sum(dtype=np.float64))
            total = int(images.sum())
            described.append((shape, _batch_size(how, shape, total), images.tolist(), cropped / total))
        writer.meta |= {"buckets": described, "not_used": {why: int(n) for why, n in not_used.items() if n}}


def _batch_size(how: Bucketing, shape: Shape, images: int) -> int:
    """The size of a global batch: not more than the bucket has images, in multiples of what the mesh needs."""
    multiple = how.grid.batch_multiple
    return min(how.batch_size_of(shape), max(images // multiple, 1) * multiple)


def _settle(sizes: Sizes, how: Bucketing) -> tuple[tuple[Shape, ...], np.ndarray, np.ndarray]:
    """(table, bucket of each image, share cropped away), where every bucket has images for its smallest batch."""
    table = how.table and check_table(how.table, how.grid)
    if not table:
        usable = np.flatnonzero(np.asarray(sizes.height) > 0) if sizes.bad else slice(None)
        height, width = sizes.height[usable], sizes.width[usable]
        table = derive(
            height, width, how.grid, how.area, how.batch_size_of, how.max_buckets, how.fitting, how.keep_rare
        )
    while True:
        bucket, share = assign(sizes.height, sizes.width, table, how.fitting)
        images = np.bincount(bucket[bucket >= 0], minlength=len(table)).tolist()
        if not any(images):
            key, value = ("table", how.table) if how.table else ("area", how.area)
            right = "be smaller, or data.buckets.enlarge True"
            if np.sum(bucket == TOO_MUCH_CROPPED) > np.sum(bucket == TOO_SMALL):
                right = "give shapes that crop less, or data.buckets.max_cropped be larger"
            raise ValueError(
                f"data.buckets.{key} is {value}; it must {right}: none of {len(sizes)} images fits a bucket"
            )
        few = [k for k, n in enumerate(images) if n < how.grid.batch_multiple]
        empty = [k for k in few if not images[k]]
        if not few or len(table) == 1:
            return table, bucket, share
        # One at a time: its images may be what another bucket lacked.
        gone = empty or [min(few, key=lambda k: (images[k], k))]
        table = tuple(shape for k, shape in enumerate(table) if k not in gone)
