"""One run of an ablation: an ordinary training workdir, which is measured when it has been trained."""

import json
import time
from typing import Any

import jax
from etils import epath

from tim_jax.config import identity
from tim_jax.config.build import build
from tim_jax.config.run import Run
from tim_jax.evaluation import pictures
from tim_jax.runs import labels, measuring, training, workdir
from tim_jax.runs.any_step import any_step_table
from tim_jax.runs.conditions import sample_conditions
from tim_jax.runs.input_pipeline import open_pipeline
from tim_jax.runs.start import check_classes, first_state
from tim_jax.runs.teachers import with_teachers
from tim_jax.system import files
from tim_jax.system.exit_codes import RESTART
from tim_jax.training import warm_start
from tim_jax.training.preemption import Stop
from tim_jax.transitions.sampling.sampler import evaluations

FILE = "result.json"
OLD_NAMES = {"weights": "checkpoint", "which": "ema"}  # of the fields of a baseline in version 0.1.0


def read(folder: epath.Path) -> dict[str, Any] | None:
    """Reads a run's result: what `train_and_measure` or `baselines.measure` returned, or {"failure"}; None if none."""
    path = folder / FILE
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    if "beside" in result:  # as version 0.1.0 wrote the results of baselines
        of = result.pop("beside")
        result["baseline"] = {OLD_NAMES.get(name, name): value for name, value in of.items()}
    return result


def write(folder: epath.Path, result: dict[str, Any]) -> None:
    """Writes a run's result into its folder, from the first process only."""
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        files.replace(folder / FILE, (json.dumps(result, indent=2) + "\n").encode())


def train_and_measure(
    config: Any, folder: epath.Path, seed: int, sampler_steps: tuple[int, ...], stop: Stop
) -> dict[str, Any]:
    """Trains a run, from its folder's checkpoint if there is one, and measures it. The caller holds the folder's lock.

    Args:
        config: of the run.
        folder: its workdir.
        seed: of the noise that samples are drawn from.
        sampler_steps: step counts that are measured.
        stop: tells whether the process was asked to stop.

    Returns:
        {"steps", "train_seconds", "seconds" of this start, "table"}, the last an any-step table.

    Raises:
        ValueError: for what is wrong before training.
        RuntimeError: if the run could not be saved.
        SystemExit: as training does, with RESTART if the process was asked to stop.
    """
    began = time.perf_counter()
    run = build(config)
    before = workdir.recorded(folder)
    if before is not None:
        identity.compare(before, run.config, folder)
    run = with_teachers(run)
    first, pipeline, measurement = first_state(run, folder), open_pipeline(run), measuring.open_measurement(run)
    check_classes(run, folder, pipeline.source)
    nfe = network_evaluations(run, sampler_steps)
    measurement.sample_count()  # before training begins
    end = training.fit(run, pipeline, folder, first, stop)
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
    """Measures weights of a run, and draws a picture of its samples into a folder.

    Args:
        measurement: how samples are measured.
        run: the run.
        weights: parameters that are sampled from.
        nfe: {steps: network evaluations per image}, see `network_evaluations`.
        seed: of the noise.
        folder: where the picture is written.

    Returns:
        The any-step table.
    """
    count = measurement.sample_count()
    generator = measuring.measurement_generator(run, count)
    conditions = sample_conditions(measurement.run, count)
    table, shown = any_step_table(measurement, generator, weights, conditions, nfe, [seed])
    if jax.process_index() == 0 and run.shows_images:
        above = labels.captions(conditions[: min(map(len, shown.values()))], workdir.class_names(folder))
        pictures.any_step_grid(shown, path=folder / "any_step_samples.png", column_labels=above)
    return table


def network_evaluations(run: Run, sampler_steps: tuple[int, ...]) -> dict[int, int]:
    """Returns {steps: network evaluations per image} of a run's sampler. Raises ValueError for steps it cannot take."""
    return {steps: evaluations(run.transport, steps, run.sampling) for steps in sampler_steps}
