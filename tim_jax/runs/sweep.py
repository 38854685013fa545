"""A sweep over ways of sampling a run: every cell is stored when it is measured, so that a sweep that ended goes on.

SETS holds a line for every set of samples, of one way of sampling, step count and seed, with all that it was measured
by. What was measured by the same is not measured again, whatever else is asked for; other lines are left alone.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from tim_jax.evaluation import anystep, pictures, sweep
from tim_jax.evaluation.protocol import Protocol
from tim_jax.runs.any_step import METRICS_COST, SHOWN, AnyStepJob, Progress, Way, compile_for, mean_nfe, measure
from tim_jax.runs.measuring import Measurement
from tim_jax.runs.restoration import Truths, around, input_psnr
from tim_jax.runs.weights import read_weights
from tim_jax.system import cluster, files, jsonl, paths
from tim_jax.training import checksums

SETS, NAMES = "sweep.jsonl", ("sweep.md", "sweep.json", "sweep.png")
NOT_OF_A_SET = ("name", "line", "seeds")  # fields of a protocol's record


class Store:
    """Sets of samples that have been measured, in a file that each of them adds a line to.

    Args:
        path: of the file, which need not be there. A line that was cut off is left out, and told.
        writes: whether this process writes.
    """

    def __init__(self, path: epath.Path, writes: bool = True):
        self.path, self._writes = path, writes
        self._known = {key_of(found["of"]): found for found in jsonl.read(path) if "of" in found}

    def get(self, of: Mapping[str, Any]) -> dict[str, Any] | None:
        """What was measured, {"figures", "seconds", "nfe"} or {"failure"}, of exactly that; None if nothing was."""
        return self._known.get(key_of(of))

    def add(self, of: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        """Adds what was measured."""
        line = {"of": dict(of), **found}
        self._known[key_of(of)] = line
        if self._writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            log = files.Log(self.path)
            log.add(json.dumps(line, ensure_ascii=False, allow_nan=False))
            log.close()


class Weights:
    """Parameters of the network, of one EMA at a time."""

    def __init__(self, job: AnyStepJob):
        self._saved, self._name, self._found = job.saved, job.ways[0].run.sampling.ema, job.weights

    def of(self, way: Way) -> Any:
        """Those of a way of sampling."""
        if (name := way.run.sampling.ema) != self._name:
            self._found = None  # before others take their place
            self._found, self._name = read_weights(way.run, self._saved), name
        return self._found


def key_of(of: Mapping[str, Any]) -> str:
    """The text by which a set is found: equal for equal values, whatever their order."""
    return json.dumps(of, sort_keys=True)


def set_of(protocol: Protocol, steps: int, seed: int, step: int, checkpoint: str | None) -> dict[str, Any]:
    """What tells a set of samples from all others, as JSON holds it.

    Args:
        protocol: by which it is measured.
        steps: of the sampler.
        seed: of the noise.
        step: of training.
        checkpoint: fingerprint of the checkpoint.
    """
    record = {name: value for name, value in protocol.record().items() if name not in NOT_OF_A_SET}
    return json.loads(json.dumps({**record, "seed": seed, "steps": steps, "step": step, "checkpoint": checkpoint}))


def measure_all(job: AnyStepJob) -> None:
    """Measures all that is not measured yet, writes table and plot, and prints them, with progress and time left."""
    measurement, settings, first = job.measurement, job.settings, jax.process_index() == 0
    assert measurement is not None, "a sweep measures"
    folder, seeds = settings.folder, list(range(settings.seeds))
    run_folder = paths.run_folder(settings.workdir, "--workdir")
    checkpoint = checksums.fingerprint(run_folder / "checkpoints" / str(job.step))
    store, protocols = (
        Store(folder / SETS, first),
        [measurement.protocol(way.run, job.count, seeds) for way in job.ways],
    )
    sets = [
        (i, steps, seed, set_of(protocol, steps, seed, job.step, checkpoint))
        for i, protocol in enumerate(protocols)
        for steps in sorted(job.ways[i].nfe)
        for seed in seeds
    ]
    known = cluster.agreed([store.get(of) is not None for *_, of in sets])
    waiting = [each for each, there in zip(sets, known, strict=True) if not there]
    if first and any(known):
        print(f"{sum(known)} of {len(sets)} sets of samples were measured before, see {folder / SETS}", flush=True)
    weights = Weights(job)
    shown = _measure(job, weights, measurement, store, waiting, len(sets))
    lines = [
        _line(way, protocol, seeds, [(steps, store.get(of) or {}) for j, steps, _, of in sets if j == i])
        for i, (way, protocol) in enumerate(zip(job.ways, protocols, strict=True))
    ]
    if not any(line["rows"] for line in lines):
        raise ValueError(
            f"no samples of the sweep could be measured; the first: {next(iter(lines[0]['failures'].values()))}"
        )
    yardstick, about = measurement.yardstick, {"step": job.step, "samples": job.count, "seeds": seeds}
    about |= {"by": "evaluations" if settings.evaluations else "steps"}
    about |= {"floor": yardstick.floor(seeds)} | measurement.real_images(job.count, seeds)
    truths = measurement.truths
    if truths:
        steered = {way.run.sampling.steering.operator: way.run for way in job.ways}
        about["inputs"] = {name: input_psnr(run, truths, job.count) for name, run in steered.items() if name}
    found = sweep.make(lines, {**about, "reference": measurement.fingerprint})
    restored = _draw_restored(job, weights, truths, found, shown) if truths else {}
    if first:
        text = sweep.to_markdown(found)
        files.replace(folder / NAMES[0], text.encode())
        files.replace(folder / NAMES[1], (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode())
        sweep.plot(found, folder / NAMES[2])
        print(text)
        for name, (rows, labels) in restored.items():
            pictures.grid(rows, len(rows) // len(labels), folder / name, row_labels=labels)
        print("written: " + ", ".join(str(folder / name) for name in (*NAMES, *restored)))


def _draw_restored(
    job: AnyStepJob,
    weights: Weights,
    truths: Truths,
    found: Mapping[str, Any],
    shown: Mapping[tuple[int, int], np.ndarray],
) -> dict[str, tuple[np.ndarray, list[str]]]:
    """{name of a picture for each number of steps: its images row by row, and the labels of its rows}.

    Of each operator they are what was measured, samples of the first noise in each way, which are drawn again if they
    were measured before, and the true images.
    """
    axes = [axis for axis in sweep.varying(found) if axis != "operator"]
    count, drawn = min(SHOWN, job.count, job.generator.batch_size), {}
    for steps in sorted({steps for way in job.ways for steps in way.nfe}):
        rows: dict[tuple[str, str], np.ndarray] = {}
        for operator in dict.fromkeys(way.run.sampling.steering.operator for way in job.ways):
            samples = {}
            for i, (way, line) in enumerate(zip(job.ways, found["lines"], strict=True)):
                if way.run.sampling.steering.operator != operator or steps not in way.nfe:
                    continue
                run, images = way.run, shown.get((i, steps))
                if images is None:
                    generator = job.generator.sampled_by(way.run.sampling)
                    images = generator.decode(generator(weights.of(way), job.conditions[:count], steps=steps))
                samples[sweep.name_of(line, axes) or "samples"] = images[:count]
            if samples:
                rows |= {(operator, name): images for name, images in around(run, truths, samples).items()}
        labels = [operator or name if name == "input" else name for operator, name in rows]
        drawn[f"sweep_steps{steps}.png"] = np.concatenate(list(rows.values())), labels
    return drawn


def _measure(
    job: AnyStepJob,
    weights: Weights,
    measurement: Measurement,
    store: Store,
    waiting: Sequence[tuple[int, int, int, dict]],
    total: int,
) -> dict[tuple[int, int], np.ndarray]:
    """Measures the sets that wait, those of the same weights one after another.

    Returns:
        {(number of a way, steps): the first images (SHOWN, H, W, c) of the first seed}.
    """
    shown: dict[tuple[int, int], np.ndarray] = {}
    work = np.cumsum([job.ways[i].nfe[steps] + METRICS_COST for i, steps, _, _ in waiting])
    progress = Progress(work[-1] if len(work) else 0)
    for done, (i, steps, seed, of) in enumerate(waiting):
        way = job.ways[i]
        generator = job.generator.sampled_by(way.run.sampling)
        compile_for(generator, weights.of(way), job.conditions, [steps])
        try:
            first: dict[int, np.ndarray] = {}
            figures, seconds = measure(measurement, generator, weights.of(way), job.conditions, steps, seed, first)
            shown |= {(i, steps): images for images in first.values() if seed == 0}
            found: dict[str, Any] = {"figures": figures, "seconds": seconds / job.count, "nfe": generator.nfe}
            (name, value), *_ = figures.items()
            said = f"{name} {value:.4g}"
        except ValueError as error:  # samples that are not finite
            found, said = {"failure": str(error)}, str(error)
        store.add(of, found)
        cell = f"{sweep.name_of({**of, **_of_way(way)}, list(sweep.AXES))}, {steps} steps, seed {seed}"
        progress(work[done], f"{total - len(waiting) + done + 1}/{total}: {cell}: {said}")
    return shown


def _line(
    way: Way, protocol: Protocol, seeds: Sequence[int], sets: Sequence[tuple[int, Mapping[str, Any]]]
) -> dict[str, Any]:
    """A line of the sweep (see `evaluation/sweep.py`) from its sets, (steps, what was measured) of each seed."""
    rows, failures = [], {}
    for steps in sorted(way.nfe):
        found = [each for of_steps, each in sets if of_steps == steps]
        failed = [each["failure"] for each in found if "failure" in each]
        if failed:
            failures[str(steps)] = failed[0]
        else:
            seconds = [each["seconds"] for each in found]
            nfe = mean_nfe([each.get("nfe", way.nfe[steps]) for each in found])  # earlier lines do not say
            row = anystep.make_row(steps, nfe, [each["figures"] for each in found], seconds)
            rows.append(row | {"evaluations": way.nfe[steps]})
    record = protocol.record()
    axes = {name: record[name] for name in sweep.AXES if name in record}
    return {**axes, **_of_way(way), "protocol": record, "rows": rows, "failures": failures}


def _of_way(way: Way) -> dict[str, str | None]:
    """The values of the axes that a protocol does not have under their names."""
    sampling = way.run.sampling
    steering = sampling.steering
    operator, method = (steering.operator, steering.method) if steering.active else (None, None)
    plan = sweep.LEARNED_PLAN if sampling.plan == "learned" else sweep.OWN_PLAN
    return {"operator": operator, "steering": method, "plan": plan}
