"""Global batches: the batch of step s is a pure function of (seed, s), and the data position of a run is s.

Step s takes the positions sB to sB + B - 1 of the endless line of rows (order.py). So a batch may reach over an epoch's
end and no row is left out: after k epochs' worth of rows every row has been seen k times, give or take one. With P
processes, process p takes the p-th of P equal slices of each batch.
"""

import dataclasses
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from tim_jax.data.order import row_at
from tim_jax.data.sources import Source, normalise

MAX_STEPS = 2**40

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Slice:
    """step -> one process's slice of the global batch of that step."""

    source: Source
    batch_size: int
    seed: int
    process_index: int
    process_count: int

    def __call__(self, step: int) -> Batch:
        rows_here = self.batch_size // self.process_count
        first = step * self.batch_size + self.process_index * rows_here
        index = row_at(first + np.arange(rows_here), len(self.source), self.seed)
        rows = [self.source[i] for i in index.tolist()]
        return {
            "x": normalise(np.stack([row["image"] for row in rows])),
            "label": np.asarray([row["label"] for row in rows], np.int32),
            "index": np.asarray([row["index"] for row in rows], np.int64),
        }


def global_batches(
    source: Source, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
) -> grain.MapDataset:
    """The data set whose element s is this process's slice of the global batch of step s, 0 <= s < MAX_STEPS.

    Element: {"x": float32 (b, h, w, c) in [-1, 1], "label": int32 (b,), "index": int64 (b,) rows of the source} with
    b = batch_size / process_count. The slices of all processes, one after another, are the global batch, whatever the
    number of processes.

    Raises ValueError if batch_size is not a positive multiple of process_count, process_index is not below it, the
    source is empty or the seed is negative.
    """
    if process_count < 1 or not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index}: must be at least 0 and below process_count {process_count}")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(f"batch_size {batch_size}: must be a positive multiple of process_count {process_count}")
    if seed < 0:
        raise ValueError(f"seed {seed}: must be 0 or more")
    if not len(source):
        raise ValueError(f"source {source.name}: has no rows, must have at least one")
    return grain.MapDataset.range(MAX_STEPS).map(_Slice(source, batch_size, seed, process_index, process_count))


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
