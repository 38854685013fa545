"""What a run reads: its source, its bucket plan, and the batches that lie on the devices before they are needed."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from tim_jax import data
from tim_jax.config.batches import batch_spec
from tim_jax.config.objective import inputs_of
from tim_jax.config.run import Run
from tim_jax.data.settings import open_data, open_split
from tim_jax.evaluation.settings import AUTO
from tim_jax.runs.encoders import BatchEncoder
from tim_jax.runs.workdir import compare_classes
from tim_jax.system import int64
from tim_jax.training import sharding
from tim_jax.training.array_checksums import Checksums, checksums

MOST_UNKNOWN = 0.5  # of the held-out examples of `evaluation.source`: a few images may have no latent
DEPTH = 2  # batches on the devices before the one that trains

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class SourcePipeline:
    """The data of a run, as the training loop takes it: an `InputPipeline` of training/loop.py.

    Attributes:
        run: whose configuration, mesh and seed say what batches are.
        source: of examples.
        plan: which bucket each example is in, and the order of batches.
        encoder: of examples, or of the images beside them, that are encoded as they are read; None where none are.
        account: of bad records; None before training.
    """

    run: Run
    source: data.Source
    plan: data.BucketPlan
    encoder: BatchEncoder | None = None
    account: data.Account | None = None

    @property
    def shapes(self) -> list[dict[str, jax.ShapeDtypeStruct]]:
        """The shapes of the global batch of every bucket, on the mesh."""
        config, mesh, factor = self.run.config, self.run.mesh, self.run.inputs.factor
        specs = (batch_spec(config, b.batch_size, (b.height // factor, b.width // factor)) for b in self.plan.buckets)
        return [sharding.abstract_batch(mesh, spec) for spec in specs]

    @functools.cached_property
    def dataset(self) -> Any:
        """A grain MapDataset: step → the examples of the global batch that this process's devices need."""
        mesh, seed, augmentation = self.run.mesh, self.run.config.seed, self.run.inputs.augmentation
        shards, count = sharding.shards_here(mesh), sharding.batch_shards(mesh)
        return data.global_batches(self.source, self.plan, seed, shards, count, augmentation)

    def batches(self, start: int) -> Iterator[tuple[dict[str, jax.Array], jax.Array]]:
        """The batches of all steps from `start` on.

        Args:
            start: how many steps came before.

        Yields:
            The global batch, and the numbers of its examples in the source as halves (B, 2), both on the mesh.

        Raises:
            TooManyBadRecords: on all processes at the same step.
        """
        return ((batch, index) for batch, index, _ in self._batches(start, summed=False))

    def summed_batches(self, start: int) -> Iterator[tuple[dict[str, jax.Array], jax.Array, Checksums | None]]:
        """As `batches`, with the checksums of each batch as well; None where `training.compare_every` is 0."""
        return self._batches(start, summed=self.run.training.compare_every > 0)

    def _batches(self, start: int, summed: bool) -> Iterator[tuple[Any, jax.Array, Checksums | None]]:
        assert self.account is not None, "training keeps an account of bad records"
        loader, training = self.run.config.loader, self.run.config.training
        names = tuple(self.shapes[0])
        stream = data.iterate(self.dataset, start, loader.threads, loader.prefetch, loader.workers)
        stream = data.count_bad_records(stream, self.account, start, training.log_every)

        def put(numbered: tuple[int, dict[str, np.ndarray]]) -> tuple:
            step, batch = numbered
            index = sharding.put_batch(self.run.mesh, {"index": int64.to_halves(batch["index"])})["index"]
            if self.encoder is not None:
                placed = self.encoder(batch, step)
            else:
                placed = sharding.put_batch(self.run.mesh, {name: batch[name] for name in names})
            return placed, index, checksums(placed) if summed else None

        return data.prefetch_to_device(enumerate(stream, start), put, DEPTH)

    def metrics(self) -> dict[str, float]:
        """Bad records by reason, over all processes, as of the last check."""
        assert self.account is not None, "training keeps an account of bad records"
        return self.account.metrics

    def check(self) -> None:
        """Raises ValueError unless the first batch is what the configuration says of its examples."""
        bucket, _ = data.Order(self.plan, self.run.config.seed).bucket(0)
        about, batch = self.plan.buckets[bucket], self.dataset[0]
        name = self.source.name
        spec = batch_spec(self.run.config, len(batch["index"]), about.shape)
        if self.run.data.encode or self.run.data.images:
            spec = images_spec(self.run, len(batch["index"]), about.shape)
        for key, (shape, dtype) in spec.items():
            if key not in batch:
                raise ValueError(f"{name}: its examples have no {key!r}, which {_NEEDED_BY[key]}")
            if batch[key].shape != shape or not np.issubdtype(batch[key].dtype, dtype):
                raise ValueError(
                    f"{name}: {key!r} of a batch is {batch[key].dtype} {batch[key].shape}; "
                    f"by the configuration it must be {np.dtype(dtype)} {shape}"
                )


def images_spec(run: Run, count: int, shape: tuple[int, int]) -> dict[str, tuple[tuple[int, ...], type]]:
    """{name: (shape, type)} of a batch that is still to be encoded.

    Args:
        run: whose examples they are.
        count: examples of the batch.
        shape: (H, W) of their images, or of latents that images lie beside.
    """
    by_class = run.config.model.condition == "class"
    spec: dict[str, tuple[tuple[int, ...], type]] = {"x": ((count, *shape, run.inputs.channels), np.float32)}
    if by_class:
        spec["label"] = ((count,), np.int32)
    else:
        spec["caption"] = ((count,), np.str_)
    for name in inputs_of(run.config):
        spec[name] = spec["x"] if name == "loser" else ((count,), np.float32)
    if run.data.images:
        height, width = (side // run.inputs.augmentation.side * data.PIXELS_PER_TOKEN for side in shape)
        spec["original"] = ((count, height, width, 3), np.float32)
    return spec


# What needs each array of a batch, to say so where a source lacks it.
_NEEDED_BY = dict.fromkeys(("x", "label"), "every run needs")
_NEEDED_BY |= dict.fromkeys(("text", "mask", "null_text", "null_mask"), "model.condition 'text' needs")
_NEEDED_BY["caption"] = (
    "model.condition 'text' needs: a text file beside every image (cat.txt beside cat.jpg), metadata.jsonl or "
    "metadata.csv; --config=own_images trains by class"
)
_NEEDED_BY["noise"] = "data.paired_noise needs: python -m tim_jax.pairs makes such examples"
_NEEDED_BY["loser"] = "objective.name 'flow_dpo' needs: those of data.source 'preferences' are pairs"
_NEEDED_BY["reward"] = "the objective needs: a 'reward' in every line of data.source 'preferences'"
_NEEDED_BY |= dict.fromkeys(("features", "features_mask"), "data.features_width above 0 needs")


def open_pipeline(run: Run) -> SourcePipeline:
    """The data of a run. Raises ValueError if it is not there, or not what the configuration says of it."""
    pipeline = SourcePipeline(run, *open_source_and_plan(run))
    pipeline.check()
    encodes = run.data.encode or run.data.images
    return dataclasses.replace(pipeline, encoder=BatchEncoder(run)) if encodes else pipeline


def open_source_and_plan(run: Run) -> tuple[data.Source, data.BucketPlan]:
    """The source of a run and its bucket plan.

    Raises ValueError if the source is not there, or not what the configuration says.
    """
    source, plan = one_after_another(lambda: open_data(run.inputs))
    if run.config.data.encode and source.latents:
        raise ValueError(f"data.encode is True; it must be False, as the examples of {source.name} are latents already")
    if run.data.source == "latents" and run.data.features_width and not run.data.images and not run.data.mixture:
        raise ValueError(
            "data.images is ''; it must be the folder of the images that these latents were made of, as "
            f"data.features_width is {run.data.features_width} and latents have no features"
        )
    if run.inputs.augmentation.flip and source.paired_noise:
        raise ValueError(
            f"data.flip is {run.inputs.augmentation.flip}; it must be 0, as the examples of {source.name} are pairs"
        )
    classes = run.inputs.num_classes
    if classes and isinstance(source, data.Mixture) and (differing := source.differing_label()) is not None:
        raise ValueError(
            f"data.mixture is {run.data.mixture}; they must have the same classes, and label {differing} is called "
            f"differently: {source.names_of(differing)}"
        )
    if classes and not source.num_classes:
        raise ValueError(f"model.condition is 'class'; it must be 'text', as {source.name} has no labels")
    if classes and source.num_classes > classes:
        raise ValueError(
            f"model.num_classes is {classes}; it must be at least {source.num_classes}, as {source.name} has labels "
            "up to "
            f"{source.num_classes - 1}"
        )
    return source, plan


def one_shape(run: Run, split: str) -> tuple[data.Source, Callable[[np.ndarray], np.ndarray]]:
    """A split of the data to compare samples with.

    The source is that of training, unless `evaluation.source` names another.

    Args:
        run: whose samples are compared.
        split: name of the split.

    Returns:
        The source, and a function that brings one of its images to the shape of the run's samples: images of other
        sizes are resized to cover that shape and cropped in the middle, enlarged where they are smaller.

    Raises:
        ValueError: if there is no such split, or its examples are samples of a model.
    """
    settings, evaluation = dataclasses.replace(run.inputs, images=""), run.evaluation
    if evaluation.source:
        settings = dataclasses.replace(
            settings, source=evaluation.source, path=evaluation.path, mixture=(), section="evaluation"
        )
    shape, fitting = settings.shape, data.Fitting(max_cropped=0.999, enlarge=True)
    if settings.bucketing is None:
        settings = dataclasses.replace(settings, fitting=fitting)
        source, _ = one_after_another(lambda: open_data(settings, split))
        if source.paired_noise:
            raise ValueError(
                f"evaluation.source is {evaluation.source!r}; it must be a source of real images to compare with, and "
                "the "
                f"examples of {source.name} are samples of a model"
            )
        return source, lambda image: data.resize_and_crop(image, shape, fitting)
    bucketing = dataclasses.replace(
        settings.bucketing,
        table=(shape,),
        tokens=0,
        batch_size=1,
        grid=data.Grid(settings.bucketing.grid.side),
        fitting=fitting,
    )
    settings = dataclasses.replace(settings, bucketing=bucketing)
    source, plan = one_after_another(lambda: open_data(settings, split))
    return source, lambda image: data.resize_and_crop(image, shape, plan.fitting)


def open_held_out(run: Run) -> tuple[str, data.Source, Callable[[np.ndarray], np.ndarray]] | None:
    """The part of the data that `evaluation.held_out` means: its name, and what `one_shape` returns; None for none.

    Raises ValueError if there is no part of that name, or if what it holds out may be trained on (`check_left_out`).
    """
    named = run.evaluation.held_out
    for split in data.NOT_TRAINED_ON if named == AUTO else [named] if named else []:
        if named != AUTO or split != run.data.split:
            with contextlib.suppress(*[data.UnknownSplit] * (named == AUTO)):
                source, fit = one_shape(run, split)
                check_left_out(run, split, source)
                return split, source, fit
    return None


def check_left_out(run: Run, split: str, held_out: data.Source) -> None:
    """Checks that training leaves out what a share of another source holds out.

    The hash of its name puts an example on the same side wherever it lies, so that an image and the latent that was
    made of it are held out together. Where `evaluation.source` calls the examples otherwise, images that it holds out
    would be trained on.

    Args:
        run: that is measured.
        split: the part.
        held_out: the examples of that part in `evaluation.source`.

    Raises:
        ValueError: few of the names of that part are among those that `data.source` holds out.
    """
    share = run.inputs.held_out_share
    if not run.evaluation.source or not share or split != data.HELD_OUT:
        return
    here = open_split(run.inputs, data.HELD_OUT)
    left_out = {name for part in getattr(here, "sources", (here,)) for name in part.stable_names(0, len(part))}
    names = held_out.stable_names(0, len(held_out))
    unknown = [name for name in names if name not in left_out]
    if len(unknown) > MOST_UNKNOWN * len(names):
        raise ValueError(
            f"evaluation.source is {run.evaluation.source!r}; it must call its examples as data.source does where "
            f"data.held_out_share is {share}, since a hash of names says what is held out, and {unknown[0]!r} is not "
            "among those that training leaves out: it may be trained on"
        )


def held_out_arrays(run: Run, folder: epath.Path) -> tuple[np.ndarray, np.ndarray]:
    """All images (n, h, w, C) that are held out, as `one_shape` brings them, and their labels. For small data.

    Raises ValueError if there are none, or if labels are not what they were in the run's workdir, `folder`.
    """
    found = open_held_out(run)
    if found is None:
        raise ValueError(
            f"evaluation.held_out is {run.evaluation.held_out!r}; it must name a part of the data, as none is held out"
            f" ({run.data.split!r} is what was trained on)"
        )
    _, source, fit = found
    if not run.evaluation.source:
        compare_classes(folder, run, source.class_names)
    return data.load_arrays(source, fit)


def one_after_another(work: Callable[[], T]) -> T:
    """What work() returns; the first process does it before the others, which then find indices and plans written."""
    if jax.process_count() == 1:
        return work()
    try:
        if jax.process_index() == 0:
            return work()
    finally:
        multihost_utils.sync_global_devices("data")
    return work()
