"""Global batches: the batch of step s is a pure function of (seed, s), and the data position of a run is s.

A step's bucket, and how often that bucket came before, follow from an Interleave of all buckets. Visit j of a bucket
with batches of B examples takes the positions jB to jB + B - 1 of the bucket's own endless sequence (order.py). So the
examples left over at an epoch's end go to the next: after k epochs every example has been seen k times, give or take
one. Each process reads the shares of a batch that go to its devices.
"""

import dataclasses
import functools
import os
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import grain
import numpy as np
from absl import flags

from tim_jax.data import bad_records, orphans
from tim_jax.data.arrays import normalise
from tim_jax.data.bad_records import BadRecord, TooManyBadRecords
from tim_jax.data.fit import Augmentation, draws, fit
from tim_jax.data.interleave import Interleave
from tim_jax.data.order import index_at
from tim_jax.data.plan import BucketPlan, one_bucket
from tim_jax.data.sources.base import Example, PickledByFields, Source

MAX_STEPS = 2**40
ATTEMPTS = 100

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Order(PickledByFields):
    """Which examples make up the global batch of a step.

    Attributes:
        plan: the buckets and their images.
        seed: of the shuffle.
    """

    plan: BucketPlan
    seed: int

    @functools.cached_property
    def _buckets(self) -> Interleave:
        return Interleave(tuple(Fraction(sum(b.amount)) / b.batch_size for b in self.plan.buckets), self.seed)

    @functools.cached_property
    def _parts(self) -> list[Interleave]:
        return [Interleave(bucket.amount, self.seed + 1) for bucket in self.plan.buckets]

    @property
    def steps_per_epoch(self) -> float:
        """In how many steps every image is seen once, on average."""
        return float(sum(self._buckets.amounts))

    def bucket(self, step: int) -> tuple[int, int]:
        """A step's bucket, and the position in the bucket's sequence of the first example of its batch."""
        (bucket,), (visit,) = self._buckets.at(np.array([step]))
        return int(bucket), int(visit) * self.plan.buckets[bucket].batch_size

    def positions(self, step: int, slots: np.ndarray) -> tuple[int, np.ndarray]:
        """A step's bucket, and the positions in the bucket's sequence of the examples at some slots of its batch.

        The sources of a mixture take turns, and what a step does with an example, such as its share of times, follows
        from its slot. So the batch of a mixture is shuffled: no source may always have the same slots.

        Args:
            step: >= 0.
            slots: places in the global batch, (n,), >= 0.

        Returns:
            The bucket's number, and positions, int64 (n,).
        """
        bucket, first = self.bucket(step)
        if len(self.plan.buckets[bucket].amount) > 1:
            slots = index_at(slots, self.plan.buckets[bucket].batch_size, (self.seed, step, 0, 0, 1))
        return bucket, first + slots

    def indices(self, bucket: int, positions: np.ndarray, attempt: int = 0) -> np.ndarray:
        """The examples at some positions of a bucket's sequence.

        Args:
            bucket: the number of the bucket.
            positions: (n,), >= 0.
            attempt: 0 for the examples themselves; 1, 2, ... for those that replace them if they cannot be used. They
                are of the same bucket and, in a mixture, the same source, and over an epoch a good example replaces at
                most one other at each attempt.

        Returns:
            Indices of examples of the source, int64 (n,).
        """
        found = np.empty(len(positions), np.int64)
        parts, ranks = self._parts[bucket].at(positions)
        for part in np.unique(parts).tolist():
            here = parts == part
            size = self.plan.buckets[bucket].images[part]
            numbers = index_at(ranks[here], size, (self.seed, bucket, part, attempt))
            found[here] = self.plan.indices(bucket, part, numbers)
        return found


@dataclasses.dataclass(frozen=True)
class _Shares(PickledByFields):
    """Maps a step to one process's shares of the global batch of that step."""

    source: Source
    order: Order
    augmentation: Augmentation
    parts: tuple[int, ...]
    count: int

    def __call__(self, step: int) -> Batch:
        about = self.order.plan.buckets[self.order.bucket(step)[0]]
        slots = np.arange(about.batch_size).reshape(self.count, -1)[list(self.parts)].ravel()
        bucket, positions = self.order.positions(step, slots)
        drawn = draws(self.order.seed, step, slots)
        bad: list[tuple[int, str, BadRecord]] = []
        examples = []
        for i, index in enumerate(self.order.indices(bucket, positions).tolist()):
            examples.append(self._example(bucket, positions[i : i + 1], index, drawn[i], bad))
        batch = {
            "x": _stacked([example["image"] for example in examples]),
            "label": np.asarray([example["label"] for example in examples], np.int32),
            "index": np.asarray([example["index"] for example in examples], np.int64),
            "bucket": np.asarray(about.shape, np.int32),
            "bad": bad_records.encode(bad),
        }
        if "caption" in examples[0]:
            batch["caption"] = np.array([example["caption"] for example in examples], np.str_)
        for name in ("text", "mask", "features", "noise"):
            if name in examples[0]:
                batch[name] = np.stack([example[name] for example in examples])
        for name in ("original", "loser"):
            if name in examples[0]:
                batch[name] = _stacked([example[name] for example in examples])
        if "reward" in examples[0]:
            batch["reward"] = np.asarray([example["reward"] for example in examples], np.float32)
        if "features" in batch:
            batch["features_mask"] = np.ones(len(examples), bool)
        return batch | {f"null_{name}": value[None] for name, value in self.source.null_text.items()}

    def _example(self, bucket: int, position: np.ndarray, index: int, draw: np.ndarray, bad: list) -> Example:
        """Example `index`, or the first of its replacements that can be used; bad records are added to `bad`."""
        plan, null_text = self.order.plan, self.source.null_text
        shape = plan.buckets[bucket].shape
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return fit(self.source.read(index), shape, plan.fitting, self.augmentation, draw, null_text)
            except BadRecord as error:
                bad.append((index, self.source.identity(index), error))
            index = int(self.order.indices(bucket, position, attempt)[0])
        raise TooManyBadRecords(
            f"data.source is {self.source.name}; {ATTEMPTS} of its examples in turn cannot be used, and the last of "
            f"them is {bad[-1][1]} ({bad[-1][2]})"
        )


def _stacked(images: list[np.ndarray]) -> np.ndarray:
    """Stacks images (h, w, c) of uint8, normalised, or latents, as they are, to float32 (n, h, w, c)."""
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
    augmentation: Augmentation = Augmentation(),
) -> grain.MapDataset:
    """The global batches of all steps, or one process's shares of them, as a data set.

    All shares of a batch, one after another, are the global batch, whatever their number.

    Args:
        source: of the examples.
        plan: its buckets; a number is the batch size of a source whose examples are all of one size.
        seed: of the order and of augmentation, >= 0.
        parts: which of `count` equal shares to read, in this order: those of the devices of a process.
        count: into how many shares a batch is split.
        augmentation: how examples are varied.

    Returns:
        A data set whose element s, 0 <= s < MAX_STEPS, belongs to step s. With b examples in the shares it is a dict:

        - "x", float32 (b, h, w, c): images in [-1, 1], or latents;
        - "label", int32 (b,);
        - "index", int64 (b,): indices of the examples in the source;
        - "bucket", int32 (2,): h and w;
        - "bad", (n, 4): the bad records that were replaced, which Account.take counts;

        and, for sources that have them, of "caption" (b,), "text" (b, M, T) with "mask" (b, M), "null_text" (1, M, T)
        with "null_mask" (1, M), "features" (b, tokens, Z) with "features_mask" (b,), "original" (b, H, W, 3), images in
        [-1, 1], "noise" and "loser" (b, h, w, c), and "reward", float32 (b,).

    Raises:
        ValueError: `count` does not divide the batch size of a bucket, a part is not below it, the source is empty, or
            the seed is negative.
    """
    for part in parts:
        if not 0 <= part < count:
            raise ValueError(f"part is {part}; it must be at least 0 and below count, {count}")
    if isinstance(plan, int):
        plan = one_bucket(source, plan)
    for bucket in plan.buckets:
        if bucket.batch_size % count:
            raise ValueError(f"batch_size is {bucket.batch_size}; it must be a positive multiple of count, {count}")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be at least 0")
    augmentation.check()
    shares = _Shares(source, Order(plan, seed), augmentation, tuple(parts), count)
    return grain.MapDataset.range(MAX_STEPS).map(shares)


def iterate(
    dataset: grain.MapDataset, start_step: int = 0, threads: int = 2, prefetch: int = 4, workers: int = 0
) -> Iterator[Batch]:
    """Iterates over a data set; the elements do not depend on how they are read.

    Args:
        dataset: such as `global_batches` returns.
        start_step: the number of the first element, >= 0.
        threads: threads that read, per process; 0 reads when an element is asked for.
        prefetch: elements that are read ahead, per process.
        workers: processes that read; 0 reads in this process.

    Raises:
        ValueError: start_step is negative.
    """
    if start_step < 0:
        raise ValueError(f"start_step is {start_step}; it must be at least 0")
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    stream = dataset[start_step:].to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():  # grain's workers ask for flags, also in a program that parses none
            flags.FLAGS.mark_as_parsed()
        ahead = grain.MultiprocessingOptions(workers, per_worker_buffer_size=max(1, prefetch))
        stream = stream.mp_prefetch(ahead, worker_init_fn=functools.partial(orphans.end_with, os.getpid()))
    return iter(stream)


def prefetch_to_device(batches: Iterator, put: Callable[[Any], Any], depth: int = 2) -> Iterator:
    """Starts the transfer of batches before they are needed, so that it overlaps the work on earlier ones.

    Args:
        batches: of any form.
        put: starts the transfer of a batch, and returns what is to be yielded for it.
        depth: how many batches are on their way besides the one that is yielded.
    """
    ready: deque[Any] = deque()
    for batch in batches:
        ready.append(put(batch))
        if len(ready) > depth:
            yield ready.popleft()
    yield from ready
