"""One run of an ablation: an ordinary training workdir, measured when it is trained."""

import json
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from tim_jax import config as configuration
from tim_jax import config_keys, files, train, workdir
from tim_jax.config import Run
from tim_jax.evaluation import FEATURES, anystep, pictures
from tim_jax.exit_codes import RESTART
from tim_jax.feed import images_of_one_shape, open_feed
from tim_jax.generate import Generator, cycle_labels
from tim_jax.start import first_state
from tim_jax.training import warm_start
from tim_jax.training.preemption import Stop
from tim_jax.transitions.sampler import evaluations

FILE = "result.json"
SHOWN = 20  # images of a step count in a run's picture


def read(folder: epath.Path) -> dict[str, Any] | None:
    """A run's result: what `train_and_measure` returned, or {"failure"}; None while there is none."""
    path = folder / FILE
    return json.loads(path.read_text()) if path.exists() else None


def write(folder: epath.Path, result: dict[str, Any]) -> None:
    """Writes a run's result. Only the first process writes."""
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        files.replace(folder / FILE, (json.dumps(result, indent=2) + "\n").encode())


def train_and_measure(
    config: Any, folder: epath.Path, seed: int, sampler_steps: tuple[int, ...], stop: Stop
) -> dict[str, Any]:
    """{"steps", "train_seconds", "seconds": of this start, "table"}; training goes on from the folder's checkpoint.

    seed: of the noise of the samples. The caller holds the folder's lock. Raises ValueError for what is wrong before
    training, RuntimeError for a run that is not saved, SystemExit as training does, with RESTART if asked to stop.
    """
    began = time.perf_counter()
    run = configuration.build(config)
    before = workdir.recorded(folder)
    if before is not None:
        config_keys.compare_identity(before, run.config, folder)
    first, feed, images = first_state(run, folder), open_feed(run), references(run)
    end = train.fit(run, feed, folder, first, stop, draw=False)
    if end.stopped:
        if jax.process_index() == 0:
            print(train.last_line(end, folder), flush=True)
        raise SystemExit(RESTART)
    if not end.saved:
        raise RuntimeError("; ".join(end.failures))
    table, shown = measure(run, run.weights(end.state), seed, sampler_steps, *images)
    if jax.process_index() == 0 and run.image_shape[-1] in (1, 3):
        pictures.any_step_grid(shown, path=folder / "any_step_samples.png")
    record = warm_start.record(warm_start.find(str(folder), "--workdir"))
    return {
        "steps": end.step,
        "train_seconds": record["productive_seconds"],
        "seconds": time.perf_counter() - began,
        "table": table,
    }


def references(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, h, w, C) of the training part and of the held-out part."""
    splits = run.config.data.split, run.config.evaluation.held_out
    return tuple(images_of_one_shape(run, split)[0] for split in splits)


def measure(
    run: Run, weights: Any, seed: int, sampler_steps: tuple[int, ...], reference: np.ndarray, held_out: np.ndarray
) -> tuple[dict[str, Any], dict[int, np.ndarray]]:
    """The any-step table of some weights with noise of one seed, and the first images of every number of steps."""
    count = run.config.evaluation.samples or len(reference)
    generator = Generator(run, min(count, run.config.evaluation.batch_size))
    labels = cycle_labels(run.config.model.num_classes, count)
    for most in {min(64, max(sampler_steps)), max(sampler_steps)}:  # compilation is not the sampler's time
        generator(weights, most, seed, labels[: generator.batch_size])
    shown = {}

    def sample(steps: int, seed: int, count: int) -> tuple[np.ndarray, float]:
        began = time.perf_counter()
        images = generator(weights, steps, seed, labels)
        shown[steps] = images[:SHOWN]
        return images, time.perf_counter() - began

    features = FEATURES[run.config.evaluation.features]
    nfe: Callable[[int], int] = lambda steps: evaluations(run.transport, steps, run.sampling)  # noqa: E731
    table = anystep.any_step_table(sample, sampler_steps, [seed], count, reference, held_out, features, nfe=nfe)
    return table, shown
