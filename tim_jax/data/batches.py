"""Global batches: the batch of step s is a pure function of (seed, s), and the data position of a run is s.

A step's bucket, and how often that bucket came before, follow from an Interleave of all buckets; visit j of a bucket
with batches of B rows takes the positions jB to jB + B - 1 of the bucket's own endless line of rows (order.py). So
rows left over at an epoch's end go to the next: after k epochs every row has been seen k times, give or take one. Each
process reads the parts of a batch that go to its devices.
"""

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import grain
import numpy as np
from absl import flags

from tim_jax.data import faults
from tim_jax.data.faults import BadRecord, TooManyBadRecords
from tim_jax.data.fit import Look, draws, fit
from tim_jax.data.interleave import Interleave
from tim_jax.data.order import row_at
from tim_jax.data.plan import BucketPlan, one_bucket
from tim_jax.data.sources.base import Fields, Source, normalise

MAX_STEPS = 2**40
ATTEMPTS = 100

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Order(Fields):
    """Which rows make up the global batch of a step."""

    plan: BucketPlan
    seed: int

    @functools.cached_property
    def _buckets(self) -> Interleave:
        return Interleave(tuple(Fraction(sum(b.amount)) / b.rows for b in self.plan.buckets), self.seed)

    @functools.cached_property
    def _parts(self) -> list[Interleave]:
        return [Interleave(bucket.amount, self.seed + 1) for bucket in self.plan.buckets]

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which every image is seen once, on average."""
        return float(sum(self._buckets.amounts))

    def bucket(self, step: int) -> tuple[int, int]:
        """(bucket, the position in the bucket's line of the batch's first row) of a step."""
        (bucket,), (visit,) = self._buckets.at(np.array([step]))
        return int(bucket), int(visit) * self.plan.buckets[bucket].rows

    def rows(self, bucket: int, positions: np.ndarray, attempt: int = 0) -> np.ndarray:
        """Rows of the source, int64 (n,), at positions (n,) of a bucket's line.

        attempt: 0; 1, 2, ... give the rows that replace them, of the same bucket and, in a mixture, the same part.
        Over an epoch a good row replaces at most one other at each attempt.
        """
        found = np.empty(len(positions), np.int64)
        parts, ranks = self._parts[bucket].at(positions)
        for part in np.unique(parts).tolist():
            here = parts == part
            size = self.plan.buckets[bucket].images[part]
            numbers = row_at(ranks[here], size, (self.seed, bucket, part, attempt))
            found[here] = self.plan.rows(bucket, part, numbers)
        return found


@dataclasses.dataclass(frozen=True)
class _Slice(Fields):
    """step -> one process's parts of the global batch of that step."""

    source: Source
    order: Order
    look: Look
    parts: tuple[int, ...]
    count: int

    def __call__(self, step: int) -> Batch:
        bucket, first = self.order.bucket(step)
        about = self.order.plan.buckets[bucket]
        slots = np.arange(about.rows).reshape(self.count, -1)[list(self.parts)].ravel()
        drawn = draws(self.order.seed, step, slots)
        bad, rows = [], []
        for i, index in enumerate(self.order.rows(bucket, first + slots).tolist()):
            rows.append(self._row(bucket, first + slots[i : i + 1], index, drawn[i], bad))
        batch = {
            "x": _stacked([row["image"] for row in rows]),
            "label": np.asarray([row["label"] for row in rows], np.int32),
            "index": np.asarray([row["index"] for row in rows], np.int64),
            "bucket": np.asarray(about.shape, np.int32),
            "bad": faults.encode(bad),
        }
        if "caption" in rows[0]:
            batch["caption"] = np.array([row["caption"] for row in rows], np.str_)
        for name in ("text", "mask", "features", "noise"):
            if name in rows[0]:
                batch[name] = np.stack([row[name] for row in rows])
        if "features" in batch:
            batch["features_mask"] = np.ones(len(rows), bool)
        return batch | {f"null_{name}": value[None] for name, value in getattr(self.source, "null", {}).items()}

    def _row(self, bucket: int, position: np.ndarray, index: int, draw: np.ndarray, bad: list) -> dict[str, Any]:
        """The row, or the first of those that replace it that can be used; what is wrong is added to `bad`."""
        plan, read = self.order.plan, getattr(self.source, "row", self.source.__getitem__)
        null = getattr(self.source, "null", {})
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return fit(read(index), plan.buckets[bucket].shape, plan.fitting, self.look, draw, null)
            except BadRecord as error:
                bad.append((index, self.source.identity(index), error))
            index = int(self.order.rows(bucket, position, attempt)[0])
        raise TooManyBadRecords(
            f"bad records: {ATTEMPTS} rows in turn of source {self.source.name} cannot be used, "
            f"the last is {bad[-1][1]} ({bad[-1][2]})"
        )


def _stacked(images: list[np.ndarray]) -> np.ndarray:
    """Images (h, w, c) of uint8, normalised, or latents as float32 (n, h, w, c)."""
    x = np.empty((len(images), *images[0].shape), np.float32)
    for image, out in zip(images, x, strict=True):
        if image.dtype == np.uint8:
            normalise(image, out)
        else:
            out[...] = image
    return x


def global_batches(
    source: Source,
    plan: BucketPlan | int,
    seed: int,
    parts: tuple[int, ...] = (0,),
    count: int = 1,
    look: Look = Look(),
) -> grain.MapDataset:
    """The data set whose element s holds some parts of the global batch of step s, 0 <= s < MAX_STEPS.

    parts: which of `count` equal parts, in this order: those of the devices of a process.
    plan: of buckets; a number is the batch size of a source whose rows are all of one size.
    Element, with b rows in the parts: {"x": float32 (b, h, w, c), images in [-1, 1]; "label": int32 (b,); "index":
    int64 (b,), rows of the source; "bucket": int32 (2,), h and w; "bad": what was replaced (faults.py takes it)}, and,
    for sources that have them, "caption": (b,) texts, "text" (b, M, T) with "mask" (b, M), "null_text" (1, M, T) with
    "null_mask" (1, M), "features" (b, tokens, Z) with "features_mask" (b,), "noise" (b, h, w, c).
    All parts, one after another, are the global batch, whatever their number.

    Raises ValueError if the rows of a bucket are not a positive multiple of count, a part is not below it, the source
    is empty or the seed is negative.
    """
    for part in parts:
        if not 0 <= part < count:
            raise ValueError(f"part {part}: must be at least 0 and below count {count}")
    if isinstance(plan, int):
        plan = one_bucket(source, plan)
    for bucket in plan.buckets:
        if bucket.rows % count:
            raise ValueError(f"batch_size {bucket.rows}: must be a positive multiple of count {count}")
    if seed < 0:
        raise ValueError(f"seed {seed}: must be 0 or more")
    look.check()
    step = _Slice(source, Order(plan, seed), look, tuple(parts), count)
    return grain.MapDataset.range(MAX_STEPS).map(step)


def iterate(
    dataset: grain.MapDataset, start_step: int = 0, threads: int = 2, prefetch: int = 4, workers: int = 0
) -> Iterator[Batch]:
    """The elements of `dataset` from number `start_step` on, read ahead; the same stream for any reading options.

    threads: threads that read, per process (0: none). prefetch: elements read ahead, per process. workers: processes
    that read (0: only this one). Raises ValueError for a negative start_step.
    """
    if start_step < 0:
        raise ValueError(f"start_step {start_step}: must be 0 or more")
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    stream = dataset[start_step:].to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():  # grain's workers ask for flags, also in a program that parses none
            flags.FLAGS.mark_as_parsed()
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=max(1, prefetch)))
    return iter(stream)


def ahead(batches: Iterator, put: Callable[[Any], Any], depth: int = 2) -> Iterator:
    """put(batch) of each batch, called `depth` batches before it is asked for: transfers overlap the work on others."""
    ready = deque()
    for batch in batches:
        ready.append(put(batch))
        if len(ready) > depth:
            yield ready.popleft()
    yield from ready
