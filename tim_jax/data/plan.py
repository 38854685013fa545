"""The bucket plan: which images make up which bucket, and how many rows of it a global batch has."""

import dataclasses
import functools
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
from etils import epath

from tim_jax.data import tables
from tim_jax.data.buckets import (
    CHUNK,
    MOST_BUCKETS,
    TOO_MUCH_CROPPED,
    TOO_SMALL,
    Fitting,
    Grid,
    Shape,
    assign,
    check_table,
    derive,
    rows_per_batch,
)
from tim_jax.data.sizes import Sizes
from tim_jax.data.sources.base import Fields, Source, digest

FORMAT = "plan 1"


@dataclasses.dataclass(frozen=True)
class Bucket:
    """height, width: of its rows. rows: of a global batch. images: of each part of the source (a mixture has several).
    cropped: the mean share of an image that is cut off. amount: rows drawn from each part per epoch."""

    height: int
    width: int
    rows: int
    images: tuple[int, ...]
    cropped: float
    amount: tuple[Fraction, ...]

    @property
    def shape(self) -> Shape:
        return self.height, self.width


@dataclasses.dataclass(frozen=True)
class BucketPlan(Fields):
    """buckets: all of them have images. not_used: why -> how many images are in no bucket. fitting: how images are
    brought to their bucket. folder: of the table of members, "" where the one bucket holds every row in order."""

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

    def rows(self, bucket: int, part: int, numbers: np.ndarray) -> np.ndarray:
        """Rows of the source: those with the given numbers (n,) among the images of a bucket from a part."""
        at = numbers + self._starts[bucket, part]
        return at if self._members is None else np.asarray(self._members[at], np.int64)

    def images(self) -> int:
        """How many images are in buckets."""
        return sum(sum(bucket.images) for bucket in self.buckets)


@dataclasses.dataclass(frozen=True)
class Bucketing:
    """How a plan is made.

    table: shapes that are given, or () to derive them from the sizes of the images, with areas up to `area`;
    `max_buckets`
    is then their largest number. tokens: budget of a global batch over all its rows; 0: `rows` rows whatever the shape.
    """

    table: tuple[Shape, ...] = ()
    area: int = 0
    max_buckets: int = MOST_BUCKETS
    tokens: int = 0
    rows: int = 0
    grid: Grid = Grid()
    fitting: Fitting = Fitting()

    def check(self) -> None:
        """Raises ValueError, naming key and value, for settings that cannot be."""
        if self.table:
            check_table(self.table, self.grid)
        elif self.area < self.grid.side**2:
            raise ValueError(
                f"data.buckets.area is {self.area}; it must be at least {self.grid.side**2}, the area of one token, "
                "where data.buckets.table is empty"
            )
        if not 1 <= self.max_buckets <= MOST_BUCKETS:
            raise ValueError(f"data.buckets.max_buckets is {self.max_buckets}; it must be 1 to {MOST_BUCKETS}")
        if not 0 <= self.fitting.max_cropped < 1:
            raise ValueError(f"data.buckets.max_cropped is {self.fitting.max_cropped}; it must lie in [0, 1)")
        if self.tokens < 0 or (not self.tokens and self.rows < 1):
            raise ValueError(
                f"data.buckets.tokens, data.batch_size are {self.tokens}, {self.rows}; one of them must be above 0"
            )
        if not self.tokens and self.rows % self.grid.rows_multiple:
            raise ValueError(f"data.batch_size is {self.rows}; it must be a multiple of {self.grid.rows_multiple}")

    def rows_of(self, shape: Shape) -> int:
        """Rows of a global batch of a shape."""
        return rows_per_batch(shape, self.grid, self.tokens, self.rows)


def parts(source: Source) -> tuple[tuple[int, Fraction], ...]:
    """(rows, passes per epoch) of each part of a source: one part, passed once, unless it is a mixture."""
    return getattr(source, "parts", ((len(source), Fraction(1)),))


def one_bucket(source: Source, rows: int) -> BucketPlan:
    """The plan of a source whose rows are all of one size: one bucket, every row in it. Raises ValueError."""
    height, width, _ = source.image_shape
    if not height or not width:
        raise ValueError(f"source {source.name}: its images differ in size, must go through data.buckets")
    if rows < 1:
        raise ValueError(f"batch_size {rows}: must be at least 1")
    if not len(source):
        raise ValueError(f"source {source.name}: has no rows, must have at least one")
    of_parts = parts(source)
    images = tuple(n for n, _ in of_parts)
    amount = tuple(n * passes for n, passes in of_parts)
    return BucketPlan((Bucket(height, width, rows, images, 0.0, amount),), {}, Fitting())


def make_plan(source: Source, sizes: Sizes, how: Bucketing, directory: Any) -> BucketPlan:
    """The plan of a source; its table of members is kept below `directory`, and read from there if it is.

    A bucket that lacks images for one batch gets smaller batches; one that lacks them for the smallest batch that the
    mesh allows is given up, and its images go to others.
    Raises ValueError for settings that cannot be, or if no image fits.
    """
    how.check()
    of_parts = parts(source)
    key = digest(FORMAT, source.fingerprint(), dataclasses.astuple(how), of_parts)
    folder = epath.Path(directory).expanduser() / f"plan-{key}"
    if not tables.exists(folder):
        _write(source, sizes, how, of_parts, folder)
    meta = tables.Table(folder).meta
    buckets = []
    for shape, rows, images, cropped in meta["buckets"]:
        passes = [times for _, times in of_parts]
        amount = tuple(n * times for n, times in zip(images, passes, strict=True))
        buckets.append(Bucket(*shape, rows, tuple(images), cropped, amount))
    return BucketPlan(tuple(buckets), meta["not_used"], how.fitting, str(folder))


def _write(source: Source, sizes: Sizes, how: Bucketing, of_parts: tuple, folder: epath.Path) -> None:
    table, bucket, share = _settle(sizes, how)
    ends = np.cumsum([n for n, _ in of_parts])
    counts = Counter({code: int(np.sum(bucket == code)) for code in (TOO_SMALL, TOO_MUCH_CROPPED)})
    not_used = {"too small": counts[TOO_SMALL], "cropped too much": counts[TOO_MUCH_CROPPED]} | sizes.faults
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
            described.append((shape, _rows(how, shape, total), images.tolist(), cropped / total))
        writer.meta |= {"buckets": described, "not_used": {why: n for why, n in not_used.items() if n}}


def _rows(how: Bucketing, shape: Shape, images: int) -> int:
    """Rows of a global batch: not more than the bucket has images, in multiples of what the mesh needs."""
    multiple, rows = how.grid.rows_multiple, how.rows_of(shape)
    return min(rows, max(images // multiple, 1) * multiple)


def _settle(sizes: Sizes, how: Bucketing) -> tuple[tuple[Shape, ...], np.ndarray, np.ndarray]:
    """(table, bucket of each image, share cropped away) such that every bucket has images for its smallest batch."""
    table = how.table and check_table(how.table, how.grid)
    if not table:
        usable = np.flatnonzero(np.asarray(sizes.height) > 0) if sizes.faults else slice(None)
        height, width = sizes.height[usable], sizes.width[usable]
        table = derive(height, width, how.grid, how.area, how.rows_of, how.max_buckets, how.fitting.resize)
    while True:
        bucket, share = assign(sizes.height, sizes.width, table, how.fitting)
        images = np.bincount(bucket[bucket >= 0], minlength=len(table)).tolist()
        if not any(images):
            shapes = ", ".join(f"{h}x{w}" for h, w in table)
            raise ValueError(
                f"data.buckets: none of {len(sizes)} images fits a bucket of {shapes}; "
                "give smaller ones or data.buckets.enlarge"
            )
        few = [k for k, n in enumerate(images) if n < how.grid.rows_multiple]
        empty = [k for k in few if not images[k]]
        if not few or len(table) == 1:
            return table, bucket, share
        # One at a time: its images may be what another bucket lacked.
        gone = empty or [min(few, key=lambda k: (images[k], k))]
        table = tuple(shape for k, shape in enumerate(table) if k not in gone)
