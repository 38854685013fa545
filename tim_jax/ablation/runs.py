"""One run of an ablation: an ordinary training workdir, measured when it is trained."""

import json
import time
from typing import Any

import jax
from etils import epath

from tim_jax.config import keys
from tim_jax.config.build import build
from tim_jax.config.run import Run
from tim_jax.evaluation import pictures
from tim_jax.runs import measuring, training, workdir
from tim_jax.runs.input_pipeline import open_pipeline
from tim_jax.runs.start import first_state
from tim_jax.runs.teachers import with_teachers
from tim_jax.system import files
from tim_jax.system.exit_codes import RESTART
from tim_jax.training import warm_start
from tim_jax.training.preemption import Stop
from tim_jax.transitions.sampling.sampler import evaluations

FILE = "result.json"


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
    run = build(config)
    before = workdir.recorded(folder)
    if before is not None:
        keys.compare_identity(before, run.config, folder)
    run = with_teachers(run)
    first, feed, measurement = first_state(run, folder), open_pipeline(run), measuring.plan(run)
    nfe = network_evaluations(run, sampler_steps)
    measuring.count_of(measurement)  # before training begins
    end = training.fit(run, feed, folder, first, stop)
    if end.stopped:
        if jax.process_index() == 0:
            print(training.last_line(end, folder), flush=True)
        raise SystemExit(RESTART)
    if not end.saved:
        raise RuntimeError("; ".join(end.failures))
    table = table_of(measurement, run, run.weights(end.state), nfe, seed, folder)
    record = warm_start.record(warm_start.find(str(folder), "--workdir"))
    return {
        "steps": end.step,
        "train_seconds": record["productive_seconds"],
        "seconds": time.perf_counter() - began,
        "table": table,
    }


def table_of(
    measurement: measuring.Measurement, run: Run, weights: Any, nfe: dict[int, int], seed: int, folder: epath.Path
) -> dict[str, Any]:
    """The any-step table of a run's weights on noise of that seed; a picture of its samples goes into the folder."""
    count = measuring.count_of(measurement)
    generator = measuring.generator_of(run, count)
    table, shown = measuring.any_step_table(measurement, generator, weights, nfe, [seed], count)
    if jax.process_index() == 0 and run.shows_images:
        pictures.any_step_grid(shown, path=folder / "any_step_samples.png")
    return table


def network_evaluations(run: Run, sampler_steps: tuple[int, ...]) -> dict[int, int]:
    """Evaluations per image by steps of the run's sampler. Raises ValueError for steps that it cannot take."""
    return {steps: evaluations(run.transport, steps, run.sampling) for steps in sampler_steps}
