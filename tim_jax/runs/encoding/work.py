"""What is to be encoded: the examples of a source in their order, in shards of consecutive examples."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from tim_jax import data
from tim_jax.config import loading
from tim_jax.config.build import build
from tim_jax.config.run import Run
from tim_jax.data.sources.base import PickledByFields
from tim_jax.runs.input_pipeline import open_source_and_plan
from tim_jax.training.mesh import make_mesh


@dataclasses.dataclass(frozen=True)
class Work(PickledByFields):
    """The examples to encode, by shards.

    Attributes:
        source: of the examples.
        plan: the buckets that they are brought to.
        rows_per_shard: consecutive examples of the source in a shard; those in no bucket are left out.
    """

    source: data.Source
    plan: data.BucketPlan
    rows_per_shard: int

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-len(self.source) // self.rows_per_shard)

    @functools.cached_property
    def bucket(self) -> np.ndarray:
        """(len(source),) the bucket of every example of the source, −1 where it is in none."""
        found = np.full(len(self.source), -1, np.int16)
        for k, bucket in enumerate(self.plan.buckets):
            (images,) = bucket.images
            found[self.plan.indices(k, 0, np.arange(images))] = k
        return found

    def rows(self, shard: int) -> np.ndarray:
        """The numbers of the examples that make up a shard."""
        first = shard * self.rows_per_shard
        return first + np.flatnonzero(self.bucket[first : first + self.rows_per_shard] >= 0)


@dataclasses.dataclass(frozen=True)
class Reading(PickledByFields):
    """Reads examples, fitted to their buckets; a picklable function of i.

    Attributes:
        source: of the examples.
        plan: the buckets.
        rows: (n,) numbers of the examples to read.
        bucket: (n,) the bucket of each.
    """

    source: data.Source
    plan: data.BucketPlan
    rows: np.ndarray
    bucket: np.ndarray

    @classmethod
    def of(cls, work: Work, rows: np.ndarray) -> "Reading":
        """Reads these examples of some work."""
        return cls(work.source, work.plan, rows, work.bucket[rows])

    def __call__(self, i: int) -> dict[str, Any]:
        """Reads example rows[i].

        Returns:
            {"image": uint8 (H, W, c), "label", perhaps "captions"}, or {"bad": its line in the list of bad records}.
        """
        index, shape = int(self.rows[i]), self.plan.buckets[self.bucket[i]].shape
        try:
            row = self.source.read(index)
            image = np.ascontiguousarray(data.resize_and_crop(row["image"], shape, self.plan.fitting))
        except data.BadRecord as error:
            line = {"row": index, "identity": self.source.identity(index), "reason": error.reason}
            return {"bad": line | ({"detail": error.detail} if error.detail else {})}
        captions = {"captions": tuple(row["captions"])} if "captions" in row else {}
        return {"image": image, "label": row["label"]} | captions


def local_run(config: ConfigDict) -> Run:
    """The run of a configuration that encodes its examples, on this process's devices, which share each batch.

    Its buckets are those of training but for the mesh, so that they depend on no machine.

    Raises:
        ValueError: for a configuration that encodes nothing, or whose examples cannot be stored in shards.
    """
    if not config.data.encode:
        raise ValueError("data.encode is False; it must be True, for examples that `codecs` encode")
    if config.data.mixture:
        raise ValueError(
            f"data.mixture is {config.data.mixture}; it must be (): encode each of its sources by itself, then mix "
            "the shards"
        )
    if config.data.random_crop:
        raise ValueError("data.random_crop is True; it must be False: shards hold the middle of images")
    sequence, mesh = config.mesh.sequence, loading.load("base").get_config().mesh
    config.mesh = mesh
    here = jax.local_devices()
    run = build(config, here[:1])
    settings = run.inputs
    if sequence > 1 and settings.bucketing:
        grid = dataclasses.replace(settings.bucketing.grid, tokens_multiple=sequence)
        bucketing = dataclasses.replace(settings.bucketing, grid=grid)
        bucketing.check()
        settings = dataclasses.replace(settings, bucketing=bucketing)
    return dataclasses.replace(run, mesh=make_mesh(dict(mesh), here), inputs=settings)


def open_work(run: Run, rows_per_shard: int) -> Work:
    """The examples of a run's source. Raises ValueError if they are not there, or not what the configuration says."""
    source, plan = open_source_and_plan(run)
    if run.config.model.condition == "text" and not source.captions:
        raise ValueError(
            f"model.condition is 'text'; it must be 'class', as the examples of {source.name} have no captions"
        )
    if source.preference:
        raise ValueError(
            f"data.source is {run.data.source!r}; it must be another one, as shards hold no pairs: training encodes "
            "them as it reads them, with data.encode=True"
        )
    return Work(source, plan, rows_per_shard)
