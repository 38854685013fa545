"""Shards of a source's examples, encoded."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from ml_collections import ConfigDict

from tim_jax import data
from tim_jax.config.run import Run
from tim_jax.data import summary
from tim_jax.runs import shard_job
from tim_jax.runs.encoding import estimate
from tim_jax.runs.encoding.examples import ExampleEncoder
from tim_jax.runs.encoding.settings import shard_settings
from tim_jax.runs.encoding.work import Reading, Work, local_run, open_work
from tim_jax.system import compilation_cache, devices

AHEAD = 8  # examples read ahead for each batch that training would


class Encoding:
    """The examples of `work`, encoded by the pretrained modules of a run: a `shard_job.Job`.

    Args:
        run: of `local_run`, on this process's devices.
        work: what is to be encoded.

    Raises:
        ValueError: if a module does not fit the configuration.
    """

    doing = "encoding"
    train_with = "--config.data.encode=False"

    @property
    def counted_by(self) -> str:
        """The source of the examples."""
        return f"--config.data.source={self.run.config.data.source}"

    @property
    def former(self) -> dict[str, Any]:
        """Version 0.1 told the same data by another fingerprint."""
        return {"source.fingerprint": self.work.source.former_fingerprint()}

    def __init__(self, run: Run, work: Work):
        self.run, self.work, self.encoder = run, work, ExampleEncoder(run, work)
        self.settings = shard_settings(run, work)
        self.counts = [len(work.rows(shard)) for shard in range(work.shards)]
        self.max_bad_share = run.inputs.max_bad_share

    @property
    def about(self) -> dict[str, Any]:
        """What about.json says of all examples."""
        latents, source = bool(self.run.codecs.autoencoder), self.work.source
        return {
            "num_classes": source.num_classes,
            "class_names": source.class_names,
            "captions": source.captions,
            "latent_channels": self.run.image_shape[-1] if latents else 0,
            "moments": latents and self.run.codecs.latents == "sample",
        }

    @property
    def null(self) -> dict[str, np.ndarray]:
        """The condition of the empty prompt; {} without texts."""
        return self.encoder.null

    def size_in_bytes(self) -> int:
        """About how many bytes all shards have."""
        return estimate.size_in_bytes(self.run, self.work, self.encoder)

    def make(self, shards: Sequence[int], progress: Callable[[], Any]) -> Iterator[tuple[list, list]]:
        """Encodes one shard after another: see `shard_job.Job`."""
        rows = np.concatenate([self.work.rows(shard) for shard in shards] or [np.zeros(0, np.int64)])
        stream = _with_progress(read(self.run, self.work, rows), progress)
        for shard in shards:
            yield self.encoder(itertools.islice(stream, self.counts[shard]))


def open_encoding(config: ConfigDict, rows_per_shard: int) -> Encoding:
    """The shards of a configuration's source. Raises ValueError for what is wrong with it."""
    run = local_run(config)
    cache = compilation_cache.use(run.training.compilation_cache, run.training.compilation_cache_gib)
    job = Encoding(run, open_work(run, rows_per_shard))
    devices.announce()
    shard_job.print_once(f"{cache}\n{summary.summary(job.work.source, job.work.plan)}")
    return job


def read(run: Run, work: Work, rows: np.ndarray) -> Iterator[dict[str, Any]]:
    """The given examples of the source as `Reading` has them, read ahead."""
    loader = run.config.loader
    dataset = grain.MapDataset.range(len(rows)).map(Reading.of(work, rows))
    return data.iterate(dataset, 0, loader.threads, AHEAD * loader.prefetch, loader.workers) if len(rows) else iter(())


def _with_progress(examples: Iterable[dict[str, Any]], progress: Callable[[], Any]) -> Iterator[dict[str, Any]]:
    for example in examples:
        yield example
        progress()
