"""What a run reads: its source, its bucket plan, and the batches that lie on the devices before they are needed."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from tim_jax import data
from tim_jax.config.batches import batch_spec
from tim_jax.config.run import Run
from tim_jax.data.settings import open_data
from tim_jax.runs.encoders import Encoder
from tim_jax.system import int64
from tim_jax.training import sharding

DEPTH = 2  # batches on the devices before the one that trains


@dataclasses.dataclass(frozen=True)
class SourcePipeline:
    """The data of a run, as the training loop takes it.

    encoder: of rows that are encoded as they are read. account: of bad records; None before training.
    """

    run: Run
    source: data.Source
    plan: data.BucketPlan
    encoder: Encoder | None = None
    account: data.Account | None = None

    @property
    def shapes(self) -> list[dict[str, jax.ShapeDtypeStruct]]:
        """The global batch of every bucket, as shapes on the mesh."""
        config, mesh, factor = self.run.config, self.run.mesh, self.run.inputs.factor
        specs = (batch_spec(config, b.batch_size, [side // factor for side in b.shape]) for b in self.plan.buckets)
        return [sharding.abstract_batch(mesh, spec) for spec in specs]

    @functools.cached_property
    def dataset(self):
        """Step → the rows of the global batch that this process's devices need (grain)."""
        mesh, seed, augmentation = self.run.mesh, self.run.config.seed, self.run.inputs.augmentation
        parts, count = sharding.shards_here(mesh), sharding.batch_shards(mesh)
        return data.global_batches(self.source, self.plan, seed, parts, count, augmentation)

    def batches(self, start: int) -> Iterator[tuple[dict[str, jax.Array], jax.Array]]:
        """(batch, its rows' numbers in the source as halves (B, 2)), both on the mesh, of every step from `start` on.

        Raises TooManyBadRecords, on all processes at the same step.
        """
        loader, training = self.run.config.loader, self.run.config.training
        names = tuple(self.shapes[0])
        stream = data.iterate(self.dataset, start, loader.threads, loader.prefetch, loader.workers)
        stream = data.count_bad_records(stream, self.account, start, training.log_every)

        def put(numbered):
            step, batch = numbered
            index = sharding.put_batch(self.run.mesh, {"index": int64.to_halves(batch["index"])})["index"]
            if self.encoder is not None:
                return self.encoder(batch, step), index
            return sharding.put_batch(self.run.mesh, {name: batch[name] for name in names}), index

        return data.prefetch_to_device(enumerate(stream, start), put, DEPTH)

    def metrics(self) -> dict[str, float]:
        """Bad records by reason, over all processes, as of the last check."""
        return self.account.metrics

    def check(self) -> None:
        """Raises ValueError unless the first batch is what the configuration says of its rows."""
        bucket, _ = data.Order(self.plan, self.run.config.seed).bucket(0)
        about, batch = self.plan.buckets[bucket], self.dataset[0]
        name = self.source.name
        spec = batch_spec(self.run.config, len(batch["index"]), about.shape)
        if self.run.config.data.encode:
            spec = images_spec(self.run, len(batch["index"]), about.shape)
        for key, (shape, dtype) in spec.items():
            if key not in batch:
                raise ValueError(f"{name}: its rows have no {key!r}, which {_ASKED[key]}")
            if batch[key].shape != shape or not np.issubdtype(batch[key].dtype, dtype):
                raise ValueError(
                    f"{name}: {key!r} of a batch is {batch[key].dtype} {batch[key].shape}; "
                    f"by the configuration it must be {np.dtype(dtype)} {shape}"
                )


def images_spec(run: Run, rows: int, shape: tuple[int, int]) -> dict[str, tuple[tuple[int, ...], type]]:
    """As `batch_spec`, of a batch that is still to be encoded; shape: that of its images."""
    by_class = run.config.model.condition == "class"
    condition = {"label": ((rows,), np.int32)} if by_class else {"caption": ((rows,), np.str_)}
    return {"x": ((rows, *shape, run.inputs.channels), np.float32)} | condition


_ASKED = dict.fromkeys(("x", "label"), "every run needs")
_ASKED |= dict.fromkeys(("text", "mask", "null_text", "null_mask"), "model.condition 'text' needs")
_ASKED["caption"] = "model.condition 'text' needs"
_ASKED["noise"] = "data.paired_noise needs: python -m tim_jax.pairs makes such rows"
_ASKED |= dict.fromkeys(("features", "features_mask"), "data.features_width above 0 needs")


def open_pipeline(run: Run) -> SourcePipeline:
    """The data of a run. Raises ValueError if it is not there, or not what the configuration says of it."""
    feed = SourcePipeline(run, *open_rows(run))
    feed.check()
    return dataclasses.replace(feed, encoder=Encoder(run)) if run.config.data.encode else feed


def open_rows(run: Run) -> tuple[data.Source, data.BucketPlan]:
    """The source of a run and its plan. Raises ValueError if it is not there, or not what the configuration says."""
    source, plan = _one_after_another(lambda: open_data(run.inputs))
    if run.config.data.encode and source.latents:
        raise ValueError(f"data.encode is True; the rows of {source.name} are latents already")
    if run.inputs.augmentation.flip and source.paired_noise:
        raise ValueError(
            f"data.flip is {run.inputs.augmentation.flip}; the rows of {source.name} are pairs, for which it must be 0"
        )
    classes = run.inputs.num_classes
    if classes and not source.num_classes:
        raise ValueError(f"model.condition is 'class'; {source.name} has no labels")
    if classes and source.num_classes > classes:
        raise ValueError(
            f"model.num_classes is {classes}; {source.name} has labels up to {source.num_classes - 1}, "
            f"so it must be at least {source.num_classes}"
        )
    return source, plan


def one_shape(run: Run, split: str) -> tuple[data.Source, Callable[[np.ndarray], np.ndarray]]:
    """A split's source, and what brings one of its images to the shape that samples are drawn in, to be compared.

    The source is that of training, unless `evaluation.source` names another. Images of other sizes are resized to cover
    that shape and cropped in the middle, enlarged where they are smaller. Raises ValueError for samples of a model.
    """
    settings, of = run.inputs, run.evaluation
    if of.source:
        settings = dataclasses.replace(settings, source=of.source, path=of.path, mixture=(), section="evaluation")
    if settings.bucketing is None:
        source, _ = _one_after_another(lambda: open_data(settings, split))
        if source.paired_noise:
            raise ValueError(
                f"evaluation.source is {of.source!r}; the rows of {source.name} are samples of a model: name a source "
                "of real images to compare with"
            )
        return source, lambda image: image
    shape, fitting = settings.shape, data.Fitting(max_cropped=0.999, enlarge=True)
    bucketing = dataclasses.replace(
        settings.bucketing,
        table=(shape,),
        tokens=0,
        batch_size=1,
        grid=data.Grid(settings.bucketing.grid.side),
        fitting=fitting,
    )
    settings = dataclasses.replace(settings, bucketing=bucketing)
    source, plan = _one_after_another(lambda: open_data(settings, split))
    return source, lambda image: data.resize_and_crop(image, shape, plan.fitting)


def images_of_one_shape(run: Run, split: str) -> tuple[np.ndarray, np.ndarray]:
    """All images of a split (n, h, w, C) as `one_shape` brings them, and their labels. For small data."""
    return data.load_arrays(*one_shape(run, split))


def _one_after_another(work: Any) -> Any:
    """What work() returns, done by the first process before the others, which then find indices and plans written."""
    if jax.process_count() == 1:
        return work()
    try:
        if jax.process_index() == 0:
            return work()
    finally:
        multihost_utils.sync_global_devices("data")
    return work()
