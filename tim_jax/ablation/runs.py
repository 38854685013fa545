"""One run of an ablation: an ordinary training workdir, which is measured when it has been trained."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
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
from tim_jax.runs.generation import Generator
from tim_jax.runs.input_pipeline import SourcePipeline, open_pipeline
from tim_jax.runs.start import check_classes, first_state
from tim_jax.runs.teachers import with_teachers
from tim_jax.system import compilation_cache, files, jsonl
from tim_jax.system.exit_codes import RESTART
from tim_jax.training import warm_start
from tim_jax.training.preemption import Stop
from tim_jax.transitions.sampling.planning import evaluations

FILE = "result.json"
OLD_NAMES = {"weights": "checkpoint", "which": "ema"}  # of the fields of a baseline in version 0.1.0


def read(folder: epath.Path) -> dict[str, Any] | None:
    """Reads a run's result: what `train_and_measure` or `baselines.measure` returned, or {"failure"}; None if none."""
    path = folder / FILE
    if not path.exists():
        return None
    result = jsonl.read_object(path)
    if "beside" in result:  # as version 0.1.0 wrote the results of baselines
        of = result.pop("beside")
        result["baseline"] = {OLD_NAMES.get(name, name): value for name, value in of.items()}
    return result


def write(folder: epath.Path, result: dict[str, Any]) -> None:
    """Writes a run's result into its folder, from the first process only."""
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        files.replace(folder / FILE, (json.dumps(result, indent=2) + "\n").encode())


def tables(result: Mapping[str, Any] | None, own: str) -> dict[str, Any]:
    """Returns {weights: their any-step table} of a result. own: the weights that its run samples with."""
    if not result or "table" not in result:
        return {}
    return {own: result["table"], **result.get("emas", {})}


def train_and_measure(
    config: Any,
    folder: epath.Path,
    seed: int,
    sampler_steps: tuple[int, ...],
    stop: Stop,
    emas: Sequence[str] = (),
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains a run, from its folder's checkpoint if there is one, and measures it. The caller holds the folder's lock.

    Args:
        config: of the run.
        folder: its workdir.
        seed: of the noise that samples are drawn from.
        sampler_steps: step counts that are measured.
        stop: tells whether the process was asked to stop.
        emas: further weights to measure, besides those of `sampling.ema`.
        before: the result of a run that has been trained and measured; only weights that it lacks are measured then.

    Returns:
        {"steps", "train_seconds", "seconds" of this start, "table", "emas"}. The table is an any-step table; "emas" are
        {weights: table} of further weights, where there are any.

    Raises:
        ValueError: for what is wrong before training, or if a trained run's checkpoint is gone.
        RuntimeError: if the run could not be saved.
        SystemExit: as training does, with RESTART if the process was asked to stop.
    """
    began = time.perf_counter()
    run = build(config)
    recorded = workdir.recorded(folder)
    if recorded is not None:
        identity.compare(recorded, run.config, folder)
    nfe = network_evaluations(run, sampler_steps)
    known = tables(before, run.sampling.ema)
    if before is None or not known:
        run = with_teachers(run)
        first, pipeline, measurement = first_state(run, folder), open_pipeline(run), measuring.open_measurement(run)
        check_classes(run, folder, pipeline.source)
        measurement.sample_count()  # before training begins
        result = _train(run, pipeline, folder, first, stop)
    else:
        measurement, result = measuring.open_measurement(run), dict(before)
        compilation_cache.use(run.training.compilation_cache, run.training.compilation_cache_gib)
    saved = warm_start.find(str(folder), "--workdir")
    if saved.step != result["steps"]:
        raise ValueError(f"{folder}: its checkpoint is of step {saved.step}, and it was measured at {result['steps']}")
    generator = measuring.measurement_generator(run, measurement.sample_count())  # compiled once for all weights
    for ema in dict.fromkeys((run.sampling.ema, *emas)):
        if ema not in known:
            weights = warm_start.read_network(saved, ema, run.trainer.abstract_online)
            known[ema] = table_of(measurement, generator, weights, nfe, seed, folder, ema)
    others = {ema: table for ema, table in known.items() if ema != run.sampling.ema}
    result |= {"table": known[run.sampling.ema]} | ({"emas": others} if others else {})
    return {"seconds": time.perf_counter() - began} | result


def _train(
    run: Run, pipeline: SourcePipeline, folder: epath.Path, first: Callable[[], Any], stop: Stop
) -> dict[str, Any]:
    """Trains to the last step; {"steps", "train_seconds"}."""
    end = training.fit(run, pipeline, folder, first, stop)
    if end.stopped:
        if jax.process_index() == 0:
            print(training.last_line(end, folder), flush=True)
        raise SystemExit(RESTART)
    if not end.saved:
        raise RuntimeError("; ".join(end.failures))
    record = warm_start.record(warm_start.find(str(folder), "--workdir"))
    return {"steps": end.step, "train_seconds": record["productive_seconds"]}


def table_of(
    measurement: measuring.Measurement,
    generator: Generator,
    weights: Any,
    nfe: dict[int, int],
    seed: int,
    folder: epath.Path,
    ema: str = "",
) -> dict[str, Any]:
    """Measures weights of a run, and draws a picture of its samples into a folder.

    Args:
        measurement: how samples are measured.
        generator: of the run's samples, see `measuring.measurement_generator`.
        weights: parameters that are sampled from.
        nfe: {steps: network evaluations per image}, see `network_evaluations`.
        seed: of the noise.
        folder: where the picture is written.
        ema: the name of the weights, where they are not those of `sampling.ema`.

    Returns:
        The any-step table.
    """
    run, conditions = generator.run, sample_conditions(measurement.run, measurement.sample_count())
    if ema:
        generator = generator.sampled_by(dataclasses.replace(run.sampling, ema=ema))  # so that its protocol names them
    table, shown = any_step_table(measurement, generator, weights, conditions, nfe, [seed])
    if jax.process_index() == 0 and run.shows_images:
        above = labels.captions(conditions[: min(map(len, shown.values()))], workdir.class_names(folder))
        further = "" if ema in ("", run.sampling.ema) else "_" + ema.replace(":", "_")
        pictures.any_step_grid(shown, path=folder / f"any_step_samples{further}.png", column_labels=above)
    return table


def network_evaluations(run: Run, sampler_steps: tuple[int, ...]) -> dict[int, int]:
    """Returns {steps: network evaluations per image} of a run's sampler. Raises ValueError for steps it cannot take."""
    return {steps: evaluations(run.transport, steps, run.sampling) for steps in sampler_steps}
