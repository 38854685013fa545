"""The job of python -m tim_jax.evaluate: the any-step table of a workdir's run, or samples for other evaluations.

With several ways of sampling it is a sweep, see `sweep.py`.
"""

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from tim_jax.config.build import build
from tim_jax.config.run import Run
from tim_jax.evaluation import anystep, likelihood, pictures, published
from tim_jax.evaluation.metrics import BITS_PER_DIM
from tim_jax.evaluation.settings import MIN_IMAGES
from tim_jax.runs import labels, workdir
from tim_jax.runs.conditions import data_labels, sample_conditions, warn_of_untrained
from tim_jax.runs.evaluation_arguments import NEAREST, STEERED, EvaluationArguments
from tim_jax.runs.generation import Conditions, Generator, resampled
from tim_jax.runs.learned_plan import with_found
from tim_jax.runs.likelihood import Likelihood, open_likelihood
from tim_jax.runs.measuring import Measurement, measurement_generator, open_measurement, protocol_of
from tim_jax.runs.reference_data import picture_shape
from tim_jax.runs.restoration import around, input_psnr
from tim_jax.runs.weights import good_checkpoint, read_weights
from tim_jax.system import compilation_cache, paths
from tim_jax.training import warm_start
from tim_jax.transitions.sampling.planning import evaluations

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
        nfe: {steps: network evaluations per image}, at most; the table has those that there were.
        seeds: of the noise.
        progress: called as progress(done, total, line) after every set of samples.

    Returns:
        The table (see `anystep.any_step_table`), and {steps: the first images (SHOWN, H, W, c) of the first seed}.

    Raises:
        ValueError: for samples that are not finite.
    """
    yardstick, count = measurement.yardstick, len(conditions)
    compile_for(generator, weights, conditions, sorted(nfe))
    shown: dict[int, np.ndarray] = {}
    counted: dict[int, list[int | float]] = {steps: [] for steps in nfe}

    def figures(steps: int, seed: int) -> tuple[dict[str, float], float]:
        found = measure(measurement, generator, weights, conditions, steps, seed, shown)
        counted[steps].append(generator.nfe)
        return found

    def counts(steps: int) -> int | float:
        return mean_nfe(counted[steps])

    protocol = measurement.protocol(generator.run, count, seeds)
    floor = yardstick.floor(seeds)
    table = anystep.any_step_table(figures, nfe, seeds, count, floor, counts, progress, protocol)
    return table | measurement.real_images(count, seeds), shown


def compile_for(generator: Generator, weights: Any, conditions: Conditions, steps: Sequence[int]) -> None:
    """Compiles what samples in so many steps, where that is still to be done: its time is not the sampler's."""
    for each in steps:
        if not generator.has_compiled(each):
            generator(weights, conditions[: generator.batch_size], steps=each)


def measure(
    measurement: Measurement,
    generator: Generator,
    weights: Any,
    conditions: Conditions,
    steps: int,
    seed: int,
    shown: dict[int, np.ndarray] | None = None,
) -> tuple[dict[str, float], float]:
    """Draws and measures samples of one step count and one seed; the arguments are those of `any_step_table`.

    Args:
        steps: of the sampler.
        seed: of the noise.
        shown: where the first samples of each step count are put, if there are none yet.

    Returns:
        {NAME: figure}, and the seconds that drawing took.

    Raises:
        ValueError: for samples that are not finite.
    """
    seconds = 0.0

    def timed() -> Iterator[np.ndarray]:
        nonlocal seconds
        began = time.perf_counter()
        for images in generator.images(weights, generator.times(steps), conditions, seed=seed):
            seconds += time.perf_counter() - began
            if shown is not None:
                shown.setdefault(steps, images[:SHOWN])
            yield images
            began = time.perf_counter()

    return measurement.figures(timed(), len(conditions)), seconds


@dataclasses.dataclass(frozen=True)
class Way:
    """One way of sampling a run.

    Attributes:
        run: the run, with that sampling.
        nfe: {steps: network evaluations per image}, at most.
    """

    run: Run
    nfe: dict[int, int]


@dataclasses.dataclass(frozen=True)
class AnyStepJob:
    """An evaluation that is about to begin; all that the user can have got wrong has been checked.

    Attributes:
        settings: of the command.
        generator: of the first way.
        ways: of sampling; with several of them there is a sweep.
        weights: parameters of the network, of the first way.
        saved: the checkpoint that they are of.
        conditions: labels or prompts of the samples of each step count and seed.
        measurement: what samples are measured by; None where they are exported, or none are drawn.
        likelihood: what bits per dimension are measured of; None where they are not.
    """

    settings: EvaluationArguments
    generator: Generator
    ways: list[Way]
    weights: Any
    saved: warm_start.Saved
    conditions: Conditions
    measurement: Measurement | None
    likelihood: Likelihood | None = None

    @property
    def count(self) -> int:
        """Samples per step count and seed."""
        return len(self.conditions)

    @property
    def step(self) -> int:
        """Step of training that the weights are of."""
        return self.saved.step

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
        protocol = protocol_of(run, self.count, [0]).record()
        shape = (self.count, *picture_shape(run)[:2], 3)
        published.write_images(path, levels(), shape, labels, protocol | {"steps": steps, "step": self.step})
        print(f"{self.count} samples at {steps} steps in {time.perf_counter() - began:.0f} s: {path}")

    def bits_per_dimension(self) -> None:
        """Measures the likelihood of the data, writes and prints it.

        Raises:
            ValueError: for figures that are not finite.
        """
        assert self.likelihood is not None, "an evaluation that asks for it"
        found = self.likelihood.measure(self.weights, self.step, range(self.settings.seeds))
        if jax.process_index() == 0:
            likelihood.write(found, self.settings.folder)
            print(likelihood.as_markdown(found))
            print("written: " + ", ".join(str(self.settings.folder / name) for name in likelihood.NAMES))

    def table(self) -> None:
        """Measures samples at every step count, writes table and pictures, and prints them.

        Raises:
            ValueError: for samples that are not finite.
        """
        measurement, settings, folder = self.measurement, self.settings, self.settings.folder
        assert measurement is not None, "an evaluation that measures"
        run, generator, nfe = measurement.run, self.generator, self.ways[0].nfe
        steps = sorted(nfe)
        work = np.cumsum([nfe[s] + METRICS_COST for s in steps for _ in range(settings.seeds)])
        time_left = Progress(work[-1])

        def progress(done: int, total: int, line: str) -> None:
            time_left(work[done - 1], f"{done}/{total}: {line}")

        seeds = list(range(settings.seeds))
        table, shown = any_step_table(measurement, generator, self.weights, self.conditions, nfe, seeds, progress)
        table |= {"step": self.step}
        written = ["any_step.json", "any_step.md", "any_step.png"]
        near = min(NEAREST if settings.nearest is None else settings.nearest, self.count)
        images = None
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
            if measurement.truths:
                shown = around(run, measurement.truths, shown)
            pictures.any_step_grid(shown, path=folder / "any_step_samples.png", column_labels=above)
            written.append("any_step_samples.png")
        if images is not None:
            batches, path = measurement.neighbour_batches(), folder / "nearest.png"
            pictures.neighbours_picture(images, batches, near, path=path, labels=captions[:near])
            written.append("nearest.png")
        print(anystep.to_markdown(table))
        for line in too_few_samples(measurement, self.count):
            print(line)
        if measurement.truths:
            found = input_psnr(run, measurement.truths, self.count)
            print(f"PSNR of the degraded images themselves: {found:.4g} dB")
        print("written: " + ", ".join(str(folder / name) for name in written))


def open_any_step(settings: EvaluationArguments, overrides: dict[str, str]) -> AnyStepJob:
    """Checks all that a command asks for, and reads the weights.

    Args:
        settings: the arguments.
        overrides: {"section.key": text} of the configuration.

    Raises:
        ValueError: one line that names what is wrong.
    """
    settings.check(overrides)
    typed = overrides
    if settings.count is not None:
        overrides = overrides | {"evaluation.num_samples": str(max(settings.count, MIN_IMAGES))}
    if settings.metrics:
        overrides = overrides | {"evaluation.metrics": str(tuple(settings.metrics))}
    folder = paths.run_folder(settings.workdir, "--workdir")
    first, *others = settings.ways
    with settings.naming_flags():
        task = {key: value for key, value in first.items() if key in STEERED} if others else first
        run = build(workdir.load(folder, overrides | task))
        runs = [each for way in settings.ways for each in _resampled(run, way, settings)] if others else [run]
        settings.check_task(runs)
        settings.check_labels(runs, overrides)
        settings.check_features(run, overrides)
    if settings.export is not None:
        paths.check_file(paths.given(settings.export, "--export"), "--export")
        settings.check_export(run, typed)
    else:
        paths.check_folder(settings.folder, "--out")
        if set(run.evaluation.metrics) == {BITS_PER_DIM}:
            settings.check_likelihood_alone(typed)
    if settings.guidance_interval and all(each.sampling.guidance == 1 for each in runs):
        raise ValueError(
            "--guidance-interval is given; it must be left out where sampling.guidance is 1, which is none"
        )
    compilation_cache.use(run.training.compilation_cache, run.training.compilation_cache_gib)
    measurement = of_data = None
    if settings.export is not None:
        count = settings.count or run.evaluation.num_samples
    else:
        of_data, run = _likelihood(run, settings)
        measurement = open_measurement(run) if run.evaluation.metrics or not of_data else None
        settings.check_nearest(run.shows_images and measurement is not None and measurement.neighbours is not None)
        count = measurement.sample_count() if measurement else MIN_IMAGES
    labels = data_labels(run, folder) if run.config.model.condition == "class" else None
    if labels is not None:
        warn_of_untrained(labels)
    saved = good_checkpoint(folder)
    weights = read_weights(runs[0], saved)
    for each in runs[1:]:
        warm_start.find_weights(saved, each.sampling.ema, "--weights")
    ways = _ways(runs, settings, folder, saved.step)
    with settings.naming_flags():  # an operator must suit the images
        generator = measurement_generator(ways[0].run, count)
        for way in ways[1:]:
            generator.sampled_by(way.run.sampling)
    generator.load()
    conditions = sample_conditions(run, count, labels)
    return AnyStepJob(settings, generator, ways, weights, saved, conditions, measurement, of_data)


def _likelihood(run: Run, settings: EvaluationArguments) -> tuple[Likelihood | None, Run]:
    """What bits per dimension are measured of, or None, and the run whose metrics are those of samples alone."""
    metrics = run.evaluation.metrics
    if BITS_PER_DIM not in metrics:
        return None, run
    if settings.is_sweep:
        raise ValueError(
            f"evaluation.metrics is {metrics}; it must be without {BITS_PER_DIM} where there are several ways of "
            "sampling, since no sample is drawn for it"
        )
    evaluation = dataclasses.replace(run.evaluation, metrics=tuple(name for name in metrics if name != BITS_PER_DIM))
    return open_likelihood(run), dataclasses.replace(run, evaluation=evaluation)


def _resampled(run: Run, way: Mapping[str, str], settings: EvaluationArguments) -> list[Run]:
    """The run sampled in one of several ways; [] for a learned plan that the sampler cannot have, of several plans."""
    try:
        return [resampled(run, way)]
    except ValueError as error:
        if way.get("sampling.plan") != "learned" or "sampler" not in settings.plan:
            raise
        _leave_out(way.get("sampling.sampler", run.sampling.sampler), error)
        return []


def _leave_out(sampler: str, error: ValueError) -> None:
    if jax.process_index() == 0:
        print(f"left out: {sampler}: {error}", flush=True)


def _ways(runs: Sequence[Run], settings: EvaluationArguments, folder: epath.Path, step: int) -> list[Way]:
    """The ways of sampling, with what was found for each. Of several plans, one that was not learned is left out.

    Raises:
        ValueError: of what was not found, or of steps or evaluations that cannot be taken.
    """
    ways = []
    for run in runs:
        try:
            found = with_found(run, folder, step)
            nfe = network_evaluations(found, settings.steps, settings.evaluations)
        except ValueError as error:
            if run.sampling.plan != "learned" or "sampler" not in settings.plan:
                raise
            _leave_out(run.sampling.sampler, error)
            continue
        ways.append(Way(found, nfe))
    if settings.evaluations and not any(way.nfe for way in ways):
        names = ", ".join(sorted({way.run.sampling.sampler for way in ways}))
        asked = ",".join(map(str, settings.evaluations))
        raise ValueError(f"--evaluations is {asked}; it must be what some steps of {names} take")
    return ways


def network_evaluations(run: Run, steps: Sequence[int], counts: Collection[int] = ()) -> dict[int, int]:
    """{steps: network evaluations per image, at most} of a run's sampler.

    Args:
        run: the run.
        steps: step counts.
        counts: of evaluations; steps that take just so many are added, where there are any.

    Raises:
        ValueError: for invalid steps.
    """
    found = {each: evaluations(run.transport, each, run.sampling) for each in steps}
    for each in range(1, max(counts, default=0) + 1):
        try:
            taken = evaluations(run.transport, each, run.sampling)
        except ValueError:  # no plan was learned, or no grid found, for so many steps
            continue
        found |= {each: taken} if taken in counts else {}
    return found


def mean_nfe(counts: Sequence[int | float]) -> int | float:
    """The mean of `Generator.nfe` over sets of as many samples each: a whole number where no sampler skips any."""
    return counts[0] if isinstance(counts[0], int) else float(np.mean(counts))


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
