"""The job of python -m tim_jax.evaluate: the any-step table of a workdir's run, or samples for other evaluations."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from tim_jax.config.build import build
from tim_jax.config.run import Run
from tim_jax.evaluation import anystep, pictures, published
from tim_jax.evaluation.settings import MIN_IMAGES, MOST_IMAGES
from tim_jax.runs import labels, workdir
from tim_jax.runs.conditions import data_labels, sample_conditions, warn_of_untrained
from tim_jax.runs.generation import Conditions, Generator, load_weights
from tim_jax.runs.measuring import Measurement, measurement_generator, open_measurement
from tim_jax.runs.reference_data import picture_shape
from tim_jax.runs.step_grid import with_found_grid
from tim_jax.system import compilation_cache, paths
from tim_jax.transitions.sampling.sampler import evaluations

SHOWN = 10  # samples of a step count in pictures
METRICS_COST = 8  # of a set of samples in network evaluations, roughly, for the time left


def any_step_table(
    measurement: Measurement,
    generator: Generator,
    weights: Any,
    conditions: Conditions,
    nfe: Mapping[int, int],
    seeds: Sequence[int],
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[dict[str, Any], dict[int, np.ndarray]]:
    """Measures samples at several step counts.

    Args:
        measurement: what samples are measured by.
        generator: see `measurement_generator`.
        weights: parameters of the network.
        conditions: labels or prompts of the samples of each step count and seed, see `sample_conditions`.
        nfe: {steps: network evaluations per image}.
        seeds: of the noise.
        progress: called as progress(done, total, line) after every set of samples.

    Returns:
        The table (see `anystep.any_step_table`), and {steps: the first images (SHOWN, H, W, c) of the first seed}.

    Raises:
        ValueError: for samples that are not finite.
    """
    yardstick, max_steps, count = measurement.yardstick, max(nfe), len(conditions)
    for steps in {min(64, max_steps), max_steps}:  # compilation is not the sampler's time
        generator(weights, conditions[: generator.batch_size], steps=steps, seed=seeds[0])
    shown: dict[int, np.ndarray] = {}

    def figures(steps: int, seed: int) -> tuple[dict[str, float], float]:
        seconds = 0.0

        def timed() -> Iterator[np.ndarray]:
            nonlocal seconds
            began = time.perf_counter()
            for images in generator.images(weights, generator.times(steps), conditions, seed=seed):
                seconds += time.perf_counter() - began
                shown.setdefault(steps, images[:SHOWN])
                yield images
                began = time.perf_counter()

        return measurement.figures(timed(), count), seconds

    floor, reference = yardstick.floor(seeds), measurement.fingerprint
    table = anystep.any_step_table(figures, nfe, seeds, count, floor, nfe.get, progress, reference)
    table["floor_at_count"] = yardstick.floor_at(count, seeds)
    by_class = measurement.run.config.model.condition == "class"
    return table | {"labels": measurement.run.evaluation.labels if by_class else "captions"}, shown


@dataclasses.dataclass(frozen=True)
class AnyStepSettings:
    """The arguments of the command.

    Attributes:
        workdir: the run's folder.
        steps: step counts.
        seeds: how many noises, for mean and spread.
        count: samples per step count and seed; None for `evaluation.num_samples`.
        nearest: samples shown beside their nearest training image.
        export: the npz file that samples are written to in place of a table; None for a table.
        out: the folder that table and pictures are written to; None for the workdir.
    """

    workdir: str
    steps: list[int]
    seeds: int = 3
    count: int | None = None
    nearest: int = 24
    export: str | None = None
    out: str | None = None

    @property
    def folder(self) -> epath.Path:
        """The folder that table and pictures are written to."""
        return paths.given(self.out, "--out") if self.out is not None else paths.run_folder(self.workdir, "--workdir")

    def check(self) -> None:
        """Raises ValueError for arguments that cannot be, whatever the run."""
        if self.export is not None and self.out is not None:
            raise ValueError(f"--out is {self.out!r}; it must be left out with --export, which names the file")
        if self.seeds < 1:
            raise ValueError(f"--seeds is {self.seeds}; it must be at least 1")
        if self.nearest < 0:
            raise ValueError(f"--nearest is {self.nearest}; it must be at least 0")
        minimum = 1 if self.export is not None else MIN_IMAGES
        if self.count is not None and not minimum <= self.count <= MOST_IMAGES:
            raise ValueError(f"--count is {self.count}; it must be at least {minimum}, and at most {MOST_IMAGES}")

    def check_export(self, run: Run) -> None:
        """Raises ValueError if the samples of a run cannot be exported."""
        if len(self.steps) > 1:
            steps = ",".join(map(str, self.steps))
            raise ValueError(f"--steps is {steps!r}; with --export it must be one step count")
        if not str(self.export).endswith(".npz"):
            raise ValueError(f"--export is {self.export!r}; it must end with .npz")
        if not (self.count or run.evaluation.num_samples):
            raise ValueError("--count: missing; with --export it says how many samples to write")
        if not run.shows_images:
            raise ValueError(f"--export: data.channels is {run.image_shape[-1]}; only 1 or 3 are images")


@dataclasses.dataclass(frozen=True)
class AnyStepJob:
    """An evaluation that is about to begin; all that the user can have got wrong has been checked.

    Attributes:
        settings: of the command.
        generator: of the run.
        weights: parameters of the network.
        step: of training.
        nfe: {steps: network evaluations per image}.
        conditions: labels or prompts of the samples of each step count and seed.
        measurement: what samples are measured by; None where they are exported.
    """

    settings: AnyStepSettings
    generator: Generator
    weights: Any
    step: int
    nfe: dict[int, int]
    conditions: Conditions
    measurement: Measurement | None

    @property
    def count(self) -> int:
        """Samples per step count and seed."""
        return len(self.conditions)

    def export(self) -> None:
        """Writes samples of seed 0 and their labels as a published batch, and prints progress and where it is."""
        generator, run = self.generator, self.generator.run
        (steps,), path = self.settings.steps, paths.given(str(self.settings.export), "--export")
        conditions = self.conditions
        began, progress, done = time.perf_counter(), Progress(self.count), 0

        def levels() -> Iterator[np.ndarray]:
            nonlocal done
            for images in generator.images(self.weights, generator.times(steps), conditions):
                done += len(images)
                progress(done, f"{done} of {self.count} samples")
                yield pictures.to_uint8(images)

        if jax.process_index() > 0:
            for _ in levels():
                pass
            return
        labels = np.zeros(self.count, np.int32) if isinstance(conditions, list) else np.asarray(conditions)
        published.write_images(path, levels(), (self.count, *picture_shape(run)[:2], 3), labels)
        print(f"{self.count} samples at {steps} steps in {time.perf_counter() - began:.0f} s: {path}")

    def table(self) -> None:
        """Measures samples at every step count, writes table and pictures, and prints them.

        Raises:
            ValueError: for samples that are not finite.
        """
        measurement, settings, folder = self.measurement, self.settings, self.settings.folder
        assert measurement is not None, "an evaluation that measures"
        run, generator, steps = measurement.run, self.generator, sorted(self.nfe)
        work = np.cumsum([self.nfe[s] + METRICS_COST for s in steps for _ in range(settings.seeds)])
        time_left = Progress(work[-1])

        def progress(done: int, total: int, line: str) -> None:
            time_left(work[done - 1], f"{done}/{total}: {line}")

        seeds = list(range(settings.seeds))
        table, shown = any_step_table(measurement, generator, self.weights, self.conditions, self.nfe, seeds, progress)
        table |= {"step": self.step}
        written = ["any_step.json", "any_step.md", "any_step.png"]
        near, images = min(settings.nearest, self.count), None
        if run.shows_images and measurement.neighbours and near:
            images = generator.decode(generator(self.weights, self.conditions[:near], steps=max(steps)))
        if jax.process_index() > 0:
            return
        folder.mkdir(parents=True, exist_ok=True)
        anystep.write(table, folder, epath.Path(settings.workdir).name)
        names = workdir.class_names(paths.run_folder(settings.workdir, "--workdir"))
        captions = labels.captions(self.conditions[: max(near, SHOWN)], names)
        if run.shows_images:
            above = captions[: min(map(len, shown.values()))]
            pictures.any_step_grid(shown, path=folder / "any_step_samples.png", column_labels=above)
            written.append("any_step_samples.png")
        if images is not None:
            batches, path = measurement.neighbour_batches(), folder / "nearest.png"
            pictures.neighbours_picture(images, batches, near, path=path, labels=captions[:near])
            written.append("nearest.png")
        print(anystep.to_markdown(table))
        for line in too_few_samples(measurement, self.count):
            print(line)
        print("written: " + ", ".join(str(folder / name) for name in written))


def open_any_step(settings: AnyStepSettings, overrides: dict[str, str]) -> AnyStepJob:
    """Checks all that a command asks for, and reads the weights.

    Args:
        settings: the arguments.
        overrides: {"section.key": text} of the configuration.

    Raises:
        ValueError: one line that names what is wrong.
    """
    settings.check()
    if settings.count is not None:
        overrides = overrides | {"evaluation.num_samples": str(max(settings.count, MIN_IMAGES))}
    folder = paths.run_folder(settings.workdir, "--workdir")
    run = build(workdir.load(folder, overrides))
    if settings.export is not None:
        paths.check_file(paths.given(settings.export, "--export"), "--export")
    else:
        paths.check_folder(settings.folder, "--out")
    compilation_cache.use(run.config.training.compilation_cache)
    measurement = None
    if settings.export is not None:
        settings.check_export(run)
        count = settings.count or run.evaluation.num_samples
    else:
        measurement = open_measurement(run)
        count = measurement.sample_count()
    labels = data_labels(run, folder) if run.config.model.condition == "class" else None
    if labels is not None:
        warn_of_untrained(labels)
    weights, step = load_weights(run, folder)
    run = with_found_grid(run, folder, step)
    nfe = {steps: evaluations(run.transport, steps, run.sampling) for steps in settings.steps}
    generator = measurement_generator(run, count)
    generator.load()
    return AnyStepJob(settings, generator, weights, step, nfe, sample_conditions(run, count, labels), measurement)


class Progress:
    """Prints how far the work is, and the time left, which is as the work that is left; on the first process only.

    Args:
        work: all of it, in any unit.
    """

    def __init__(self, work: float):
        self.began, self.work = time.perf_counter(), work

    def __call__(self, done: float, line: str) -> None:
        """Prints a line after so much of the work."""
        spent = time.perf_counter() - self.began
        if jax.process_index() == 0:
            left = spent * (self.work / done - 1)
            print(f"[{spent:.0f} s, about {left:.0f} s left] {line}", flush=True)


def too_few_samples(measurement: Measurement, count: int) -> list[str]:
    """Notes on figures of too few samples for the width of their features."""
    notes = []
    for (output, kind), value in measurement.yardstick.references[""].summary.items():
        if kind == "moments" and count <= np.size(value.mean):
            width = np.size(value.mean)
            notes.append(f"note: {count} samples for {width} {output}: Fréchet distances are far too high")
    return notes
