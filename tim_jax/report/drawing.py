"""Draws what a report shows of a run: samples by sampler and number of steps, trajectories, nearest training images."""

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import jax
import numpy as np
from absl import logging
from etils import epath

from tim_jax.config.build import build
from tim_jax.config.run import Run
from tim_jax.evaluation import FEATURES, pictures
from tim_jax.runs import labels, workdir
from tim_jax.runs.conditions import class_turns, data_captions, known_labels
from tim_jax.runs.generation import Conditions, Generator, load_weights, open_generator, resampled
from tim_jax.runs.input_pipeline import open_source_and_plan
from tim_jax.runs.learned_plan import with_found
from tim_jax.runs.reference_data import training_images
from tim_jax.system import compilation_cache
from tim_jax.system.progress import Bar
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.sampling.planning import evaluations, make_plan, time_grid
from tim_jax.transitions.sampling.plans import host_transport
from tim_jax.transitions.sampling.samplers import SAMPLERS

BESIDE = ("flow_map", "heun")  # samplers that are drawn besides the run's own, where it was trained for them
PATHS, PATH_STEPS = 4, 8  # trajectories, and the steps of the longest
MOST_SEARCHED = 50_000  # training images among which the nearest ones are looked for
SEED = 0


@dataclasses.dataclass(frozen=True)
class Path:
    """States of some samples on their way from noise to data.

    Attributes:
        times: (steps + 1,), falling.
        states: bytes (steps + 1, n, H, W, 3), as they can be seen: divided by σ(t) where that is above 1.
    """

    times: np.ndarray
    states: np.ndarray


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What was drawn of a run.

    Attributes:
        step: of the training.
        ema: the weights.
        own: the run's own sampler.
        captions: labels or prompts of the samples.
        samples: {sampler: {steps: bytes (n, H, W, 3)}}; image i of all has the same noise.
        evaluations: {sampler: {steps: network evaluations per image, a float where it is their mean}}.
        paths: {steps: trajectories of the first samples by the run's own sampler}.
        nearest: samples (n, H, W, 3), the training images nearest to them, and Euclidean distances (n,); None if they
            were not looked for.
        why: if so, why.
    """

    step: int
    ema: str
    own: str
    captions: list[str]
    samples: dict[str, dict[int, np.ndarray]]
    evaluations: dict[str, dict[int, int | float]]
    paths: dict[int, Path]
    nearest: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    why: str = ""


class Undrawable(ValueError):
    """Nothing can be drawn of a run, for a reason that is no mistake of what was asked for."""


def open_run(folder: epath.Path, overrides: dict[str, str], names: Sequence[str] | None) -> dict[str, Run]:
    """Builds a workdir's run for all samplers that are drawn with.

    Args:
        folder: the workdir.
        overrides: {"section.key": text}.
        names: of the samplers; None for the run's own and those of BESIDE that suit its training.

    Returns:
        {sampler: run}, the run's own first where no names are given.

    Raises:
        ValueError: one line.
    """
    try:
        run = build(workdir.load(folder, overrides))
    except ValueError as error:
        if overrides:
            raise
        raise ValueError(f"{error} (--samples=0 makes a report without drawing)") from None
    compilation_cache.use(run.training.compilation_cache, run.training.compilation_cache_gib)
    if not run.shows_images:
        raise Undrawable("Examples of this run are latents, and codecs.autoencoder, which decodes them, is ''.")
    objective = cast(Objective, run.trainer.step.objective)
    shares = {True: objective.times.share_equal > 0, False: objective.times.share_equal < 1}
    if names is None:
        beside = [name for name in BESIDE if name != run.sampling.sampler and shares[SAMPLERS[name].diagonal]]
        names = [run.sampling.sampler, *beside]
    for name in names:
        if name not in SAMPLERS:
            raise ValueError(f"--samplers has {name!r}; each must be one of {', '.join(SAMPLERS)}")
    found = {}
    for name in dict.fromkeys(names):
        own = {"sampling.sampler": name, "sampling.plan": "sampler"}
        found[name] = run if name == run.sampling.sampler else resampled(run, own)
    return found


def check_steps(runs: dict[str, Run], steps: Sequence[int]) -> None:
    """Raises ValueError for step counts that one of the samplers cannot take."""
    for run in runs.values():
        for count in steps:
            make_plan(run.transport, time_grid(run.transport, count, run.sampling), run.sampling)


def conditions_of(run: Run, folder: epath.Path, count: int) -> Conditions:
    """Labels, every class in turn, or captions of the data. Raises Undrawable where there are none."""
    if run.config.model.condition == "class":
        return class_turns(known_labels(run, folder), count)
    try:
        return data_captions(open_source_and_plan(run)[0], count)
    except (ValueError, OSError) as error:
        raise Undrawable(f"Prompts are captions of the data, which could not be read: {error}") from None


def draw(folder: epath.Path, runs: dict[str, Run], steps: Sequence[int], count: int) -> Drawn:
    """Draws samples of the latest checkpoint, with a progress bar.

    Args:
        folder: the workdir.
        runs: see `open_run`.
        steps: step counts.
        count: of samples.

    Returns:
        What was drawn.

    Raises:
        Undrawable: if there is no checkpoint, or nothing that samples can be of.
        ValueError: for step counts that a sampler cannot take.
    """
    first = next(iter(runs.values()))
    try:
        weights, step = load_weights(first, folder)
    except ValueError as error:
        raise Undrawable(str(error).replace(f"--workdir={folder}: ", "this run ")) from None
    runs = {name: with_found(run, folder, step) for name, run in runs.items()}
    check_steps(runs, steps)
    conditions = conditions_of(first, folder, count)
    generator = open_generator(first, min(count, first.config.sampling.batch_size))
    generator.load()
    samples: dict[str, dict[int, np.ndarray]] = {name: {} for name in runs}
    nfe: dict[str, dict[int, int | float]] = {
        name: {n: evaluations(run.transport, n, run.sampling) for n in steps} for name, run in runs.items()
    }
    own = next(iter(runs))
    long = [n for n in sorted(steps) if 1 < n <= PATH_STEPS][-3:]
    total = sum(map(sum, (each.values() for each in nfe.values()))) + sum(nfe[own][n] for n in long)
    paths = {}
    with Bar(total=total, desc="samples", unit="pass", disable=jax.process_index() > 0) as bar:
        for name, run in runs.items():
            generator = generator.sampled_by(run.sampling)  # by the same programs
            for n in sorted(steps):
                images = generator.images(weights, generator.times(n), conditions, seed=SEED)
                samples[name][n] = pictures.to_uint8(np.concatenate(list(images)))
                bar.update(nfe[name][n])
                nfe[name][n] = generator.nfe
            for n in long if name == own else ():
                paths[n] = trajectories(generator, weights, conditions[:PATHS], n)
                bar.update(nfe[name][n])
    names = workdir.class_names(folder)
    drawn = Drawn(step, first.sampling.ema, own, labels.captions(conditions, names), samples, nfe, paths)
    try:
        found = nearest(first, samples[own][max(steps)])
    except (ValueError, OSError) as error:
        logging.warning("nearest training images are not shown: %s", error)
        return dataclasses.replace(drawn, why=f"The training images could not be read: {error}.")
    if isinstance(found, str):
        return dataclasses.replace(drawn, why=found)
    return dataclasses.replace(drawn, nearest=found)


def trajectories(generator: Generator, weights: Any, conditions: Conditions, steps: int) -> Path:
    """The states of some samples at all times of the sampler."""
    times = generator.times(steps)
    states = generator.integrate(weights, times, conditions, seed=SEED, trajectory=True)
    sigma = np.asarray(host_transport(generator.run.transport).sigma(cast(Any, times)), np.float32)
    seen = states / np.maximum(sigma, 1).reshape(-1, *[1] * (states.ndim - 1))
    return Path(times, np.stack([pictures.to_uint8(generator.decode(each)) for each in seen]))


def nearest(run: Run, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | str:
    """Samples as bytes, the training images nearest to them in pixels, and distances; or why they are not looked for.

    Raises ValueError if the data is not there.
    """
    images = training_images(run, FEATURES["pixels"](""))
    if images.count > MOST_SEARCHED:
        return f"They are not looked for among {images.count:,} training images."
    size = run.config.evaluation.batch_size

    def batches() -> Any:
        for start in Bar(range(0, images.count, size), desc="nearest images", unit="batch", leave=False):
            batch, found = images.read(np.arange(start, min(start + size, images.count)))
            if found.any():
                yield batch[found]

    floats = (samples / np.float32(127.5) - 1)[..., : 1 if run.image_shape[-1] == 1 else 3].astype(np.float32)
    found, distances = pictures.nearest_images(floats, batches())
    return samples, pictures.to_uint8(found), distances
