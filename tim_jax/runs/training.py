"""A run as it trains: all that is checked before, one step to try it, pictures on the way, the loop in a workdir."""

import contextlib
import dataclasses
import functools
import pathlib
import shlex
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from PIL import Image

from tim_jax import data
from tim_jax.config.batches import made_up_batch
from tim_jax.config.command_line import failures, user_errors
from tim_jax.config.run import Run
from tim_jax.data import summary
from tim_jax.evaluation import pictures
from tim_jax.runs import averages, labels, published, teachers, workdir
from tim_jax.runs.conditions import record_labels, sample_conditions
from tim_jax.runs.generation import open_generator
from tim_jax.runs.input_pipeline import SourcePipeline
from tim_jax.runs.measuring import Measurement, measure_while_training, periodic_protocols
from tim_jax.runs.restoration import around
from tim_jax.runs.schedule import warn_of_schedule
from tim_jax.system import cluster, files, paths
from tim_jax.system.exit_codes import RESTART
from tim_jax.training import ledger, sharding
from tim_jax.training.array_checksums import share_with_copies
from tim_jax.training.checkpoints import DamagedCheckpoints
from tim_jax.training.corruption import Excluded, RepeatedCorruption, sound
from tim_jax.training.formats import UnknownFormat
from tim_jax.training.goodput import Goodput
from tim_jax.training.local_checkpoints import LocalCheckpoints, run_folder
from tim_jax.training.loop import End, Periodic, train
from tim_jax.training.mesh import AUTO, mesh_text
from tim_jax.training.nonfinite import TooManyNonFinite
from tim_jax.training.preemption import Stop
from tim_jax.training.snapshots import Snapshots
from tim_jax.training.state import TrainState
from tim_jax.training.watch import of_nothing
from tim_jax.transitions.objective import Objective

COLUMNS = 10  # images of a row in the pictures of samples


def check(run: Run) -> None:
    """Takes one real step of the configuration on its mesh, on made-up examples, and prints its metrics.

    Raises SystemExit, with one line, if they are not finite.
    """
    warn_of_schedule(run)
    averages.warn(run)
    print_mesh(run)
    if line := published.note(run):
        print(line)
    batch_size = run.inputs.batch_size_of(run.image_shape[:2])
    here = batch_size * len(sharding.shards_here(run.mesh)) // sharding.batch_shards(run.mesh)
    batch = made_up_batch(run.config, here)
    began = time.perf_counter()
    state = run.trainer.create()
    state, metrics, per_example = run.trainer.detailed(state, sharding.put_batch(run.mesh, batch))
    nothing = of_nothing(per_example)
    values = {name: float(value) for name, value in jax.device_get(metrics).items() if name not in nothing}
    count = sum(x.size for x in jax.tree.leaves(state.params))
    print(", ".join(f"{name} {value:.5g}" for name, value in values.items()))
    print(f"one step of {batch_size} examples, {count:,} parameters, in {time.perf_counter() - began:.1f} s")
    if not all(np.isfinite(value) for value in values.values()):
        raise SystemExit("the first step is not finite")


def print_mesh(run: Run) -> None:
    """Prints, where there are several devices, how they are shared out, and whether `mesh.fsdp` was chosen."""
    if run.mesh.size > 1 and jax.process_index() == 0:
        chosen = run.config.mesh.fsdp == AUTO and run.mesh.shape["fsdp"] > 1
        why = f"; mesh.fsdp was chosen for a width of {run.network.width}" if chosen else ""
        print(f"mesh: {mesh_text(run.mesh)}{why}", flush=True)


def warn_of_no_copies(run: Run) -> None:
    """Warns where bits that flip in most of the state cannot be seen, since no other device has a copy of it."""
    if run.training.compare_every and run.mesh.size > 1 and jax.process_index() == 0:
        without = 1 - share_with_copies(run.mesh, run.trainer.abstract)
        if without > 0.5:
            logging.warning(
                "mesh: on %s, %.0f%% of the state on a device has no copy elsewhere, and training.compare_every "
                "finds no bits that change in it", mesh_text(run.mesh), 100 * without,
            )  # fmt: skip


def picture_sizes(run: Run, plan: data.BucketPlan, max_sizes: int = 5) -> list[tuple[int, int]]:
    """Sizes (h, w) that samples are drawn in: of the buckets, the tallest, the widest and some between."""
    shapes = sorted((bucket.shape for bucket in plan.buckets), key=lambda shape: shape[0] / shape[1])
    if len(shapes) == 1:
        return [run.image_shape[:2]]
    chosen = sorted({round(i) for i in np.linspace(0, len(shapes) - 1, max_sizes)})
    factor = run.inputs.factor
    return [(shapes[i][0] // factor, shapes[i][1] // factor) for i in chosen]


def sample_pictures(run: Run, pipeline: SourcePipeline) -> Callable[[TrainState], dict[str, Image.Image]]:
    """Prepares pictures of samples.

    Returns:
        A function of the state that gives {"samples": a grid with one row per step count, and the class or the
        prompt above each column}, of the weights that sampling uses.

    Raises:
        ValueError: if a text encoder or an autoencoder cannot be read.
    """
    sizes = picture_sizes(run, pipeline.plan)
    each = COLUMNS // len(sizes) if len(sizes) == 1 else 3
    generator, count = open_generator(run, each), each * len(sizes)
    generator.load()
    conditions = sample_conditions(run, count)
    captions = labels.captions(conditions, pipeline.source.class_names)

    def images_of(weights: Any, steps: int) -> list[np.ndarray]:
        images: list[np.ndarray] = []
        for i, size in enumerate(sizes):
            some = conditions[i * each : (i + 1) * each]
            images += list(generator.decode(generator(weights, some, steps=steps, size=size)))
        return images

    def draw(state: TrainState) -> dict[str, Image.Image]:
        weights = run.weights(state)
        images: dict[Any, Any] = {steps: images_of(weights, steps) for steps in run.training.sample_steps}
        if generator.truths:
            images = around(run, generator.truths, images)
        return {"samples": pictures.any_step_grid(images, column_labels=captions)}

    return draw


def can_draw(run: Run) -> bool:
    """Whether pictures of samples can be made: examples are images or decoded to images, prompts can be read here.

    A refiner samples nothing.
    """
    if cast(Objective, run.trainer.step.objective).prediction_input:
        return False
    return run.shows_images and (run.config.model.condition == "class" or bool(run.codecs.text_encoder))


def fit(
    run: Run,
    pipeline: SourcePipeline,
    folder: epath.Path,
    first: Callable[[], TrainState],
    stop: Stop,
    profile: tuple[int, int] | None = None,
    measurement: Measurement | None = None,
    draw: Callable[[TrainState], Mapping[str, Any]] | None = None,
    goodput: Goodput | None = None,
) -> End:
    """Trains in a workdir.

    Args:
        run: with its teachers.
        pipeline: of its data.
        folder: the workdir.
        first: makes the state where there is no checkpoint.
        stop: who asks for an end.
        profile: first and last step of a trace, or None.
        measurement: what `evaluation.periodic` asks for, or None.
        draw: see `sample_pictures`; None for no pictures.
        goodput: account of this start's time; None for one that begins now.

    Returns:
        How training ended.

    Raises:
        SystemExit: with one line, if too many records are bad or training cannot go on.
    """
    warn_of_schedule(run, workdir.recorded(folder))
    averages.warn(run)
    classes = pipeline.source.class_names if run.inputs.num_classes else ()
    more = teachers.record(run)
    if measurement is not None:
        more |= {"evaluation_protocols": periodic_protocols(measurement)}
    record = workdir.record_start(folder, run.config, more, classes)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the start is recorded")
    account = data.Account(folder, jax.process_index(), run.inputs.max_bad_share, cluster.summed)
    pipeline = dataclasses.replace(pipeline, account=account)
    print_mesh(run)
    if jax.process_index() == 0:
        print(summary.summary(pipeline.source, pipeline.plan), flush=True)
        if line := published.note(run):
            print(line, flush=True)
        for line in averages.told(run, folder):
            print(line, flush=True)
    warn_of_no_copies(run)
    goodput, lead = goodput or Goodput(), jax.process_index() == 0
    recorded = goodput.recorded(folder, workdir.first_start(folder)) if lead else contextlib.nullcontext()
    cannot_go_on = (TooManyNonFinite, DamagedCheckpoints, UnknownFormat, RepeatedCorruption)
    with recorded, user_errors(data.TooManyBadRecords), failures(*cannot_go_on), failures(Excluded, code=RESTART):
        if run.config.model.condition == "class":
            record_labels(run, pipeline.source, folder)
        pictures = Periodic(draw, run.training.sample_every, at_end=True) if draw else None
        measure = measure_while_training(run, measurement) if measurement else None
        stored = run.posthoc_ema
        attempt = functools.partial(
            train,
            run.trainer,
            run.training,
            run.checkpoint,
            folder,
            pipeline,
            first,
            record=record,
            pictures=pictures,
            figures=Periodic(measure, run.evaluation.periodic.every) if measure else None,
            snapshots=Snapshots(folder, stored.every, stored.dtype) if stored.sigma_rel else None,
            local=local_checkpoints(run, folder) if run.checkpoint.local else None,
            stop=stop,
            goodput=goodput,
            profile=profile,
        )
        return sound(attempt)


def local_folder(run: Run) -> pathlib.Path:
    """The folder of every host that `checkpoint.local` names.

    Other paths may be relative: where one leads elsewhere, what should be there is missed. This folder would be made
    there, and what the last start has saved would not be looked for.

    Raises:
        ValueError: one line, for a relative one.
    """
    local = pathlib.Path(paths.given(run.checkpoint.local, "checkpoint.local", ()))
    if not local.is_absolute():
        raise ValueError(
            f"checkpoint.local is {run.checkpoint.local!r}; it must be a path from the root, such as "
            f"{str(local.absolute())!r}, which is the same wherever a process is started"
        )
    return local


def check_local(run: Run) -> None:
    """Raises ValueError, in one line, for a `checkpoint.local` that is relative or cannot be written to."""
    if run.checkpoint.local:
        paths.check_folder(local_folder(run), "checkpoint.local")


def local_checkpoints(run: Run, folder: epath.Path) -> LocalCheckpoints:
    """Returns the second tier of checkpoints of a run that has been started in a workdir."""
    start = (folder / workdir.STARTS).read_bytes().partition(b"\n")[0]
    return LocalCheckpoints(run_folder(local_folder(run), files.absolute(folder), start))


def last_line(end: End, folder: epath.Path) -> str:
    """The line that a run ends with."""
    if end.stopped:
        saved = "which is saved" if end.saved else "which is not saved"
        again = f"tim-jax train {shlex.quote(f'--workdir={folder}')}"
        line = f"stopped by {end.stopped} at step {end.step}, {saved}: {again} goes on"
    else:
        line = f"trained to step {end.step}; metrics, checkpoints and samples are in {folder}"
    return "; ".join([line, ledger.told(end.seconds), *end.failures[-1:]])
