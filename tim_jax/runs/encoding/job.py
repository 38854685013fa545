"""Shards of a source's rows, encoded."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from tim_jax import data
from tim_jax.config.run import Run
from tim_jax.runs.encoding import estimate
from tim_jax.runs.encoding.rows import RowEncoder
from tim_jax.runs.encoding.settings import settings_of
from tim_jax.runs.encoding.work import Reading, Work

AHEAD = 8  # rows read ahead for each batch that training would


class Encoding:
    """The rows of `work`, encoded by the frozen parts of a run: a `shard_job.Job`. Raises ValueError if a part does not
    fit."""

    doing, train_with = "encoding", "--config.data.encode=False"

    def __init__(self, run: Run, work: Work):
        self.run, self.work, self.encoder = run, work, RowEncoder(run, work)
        self.settings = settings_of(run, work)
        self.counts = [len(work.rows(shard)) for shard in range(work.shards)]
        self.max_bad_share = run.inputs.max_bad_share

    @property
    def about(self) -> dict[str, Any]:
        latents, source = bool(self.run.codecs.autoencoder), self.work.source
        return {
            "num_classes": source.num_classes,
            "captions": source.captions,
            "latent_channels": self.run.image_shape[-1] if latents else 0,
            "moments": latents and self.run.codecs.latents == "sample",
        }

    @property
    def null(self) -> dict[str, np.ndarray]:
        return self.encoder.null

    def size_in_bytes(self) -> int:
        return estimate.size_in_bytes(self.run, self.work, self.encoder)

    def make(self, shards: Sequence[int], told: Callable[[], Any]) -> Iterator[tuple[list, list]]:
        rows = np.concatenate([self.work.rows(shard) for shard in shards] or [np.zeros(0, np.int64)])
        stream = _telling(read(self.run, self.work, rows), told)
        for shard in shards:
            yield self.encoder(itertools.islice(stream, self.counts[shard]))


def read(run: Run, work: Work, rows: np.ndarray) -> Iterator[dict[str, Any]]:
    """The given rows of the source as `Reading` has them, read ahead."""
    loader = run.config.loader
    dataset = grain.MapDataset.range(len(rows)).map(Reading.of(work, rows))
    return data.iterate(dataset, 0, loader.threads, AHEAD * loader.prefetch, loader.workers) if len(rows) else iter(())


def _telling(rows: Iterable[dict[str, Any]], told: Callable[[], Any]) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield row
        told()
