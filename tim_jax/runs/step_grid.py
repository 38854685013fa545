"""Step grids found for a run's weights, kept in its workdir by python -m tim_jax.grid."""

import dataclasses
import json
import shlex
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from tim_jax.config.run import Run
from tim_jax.runs.generation import Generator
from tim_jax.system import files, jsonl
from tim_jax.system.progress import Bar
from tim_jax.training import checksums
from tim_jax.transitions import SAMPLERS
from tim_jax.transitions.sampling.optimal_grid import candidate_times, cheapest, jump_costs

FILE = "grid.json"
SMALL_STEPS = 4  # steps of the path that jumps are measured against, from a candidate to the next


class StepGrid(NamedTuple):
    """The grid found for a number of steps.

    Attributes:
        steps: how many.
        times: (steps + 1,), falling.
        error: the sum of the errors of its jumps.
        uniform_error: the same of a grid at even noise levels.
    """

    steps: int
    times: np.ndarray
    error: float
    uniform_error: float


class FoundGrids(NamedTuple):
    """What a search found.

    Attributes:
        grids: in ascending steps.
        times: (n,) the candidates.
        cost: (n, n) the error of the jump from time i to time j, infinite where i ≥ j.
    """

    grids: list[StepGrid]
    times: np.ndarray
    cost: np.ndarray


def fingerprint(run: Run, folder: epath.Path, step: int) -> dict[str, Any]:
    """Returns what a grid belongs to: the weights, by their checkpoint's fingerprint, and the sampler."""
    checkpoint = checksums.fingerprint(folder / "checkpoints" / str(step))
    return {"step": step, "checkpoint": checkpoint, "weights": run.sampling.ema, "sampler": run.sampling.sampler}


def known_as(run: Run, folder: epath.Path, step: int) -> dict[str, tuple]:
    """Returns all values by which `fingerprint` has ever named the same, so that grids found earlier stay valid."""
    now = fingerprint(run, folder, step)
    then = {"checkpoint": checksums.former_fingerprint(folder / "checkpoints" / str(step))}
    if run.sampling.ema == "online":
        then["weights"] = "student"
    return {key: (value, then[key]) if key in then else (value,) for key, value in now.items()}


def with_found_grid(run: Run, folder: epath.Path, step: int) -> Run:
    """Returns the run, with the times that were found for it if `sampling.grid` is 'optimal'.

    Args:
        run: the run.
        folder: its workdir.
        step: of training, which its weights are of.

    Raises:
        ValueError: naming the command, if no times were found for these weights and this sampler.
    """
    if run.sampling.grid != "optimal":
        return run
    command = f"python -m tim_jax.grid {shlex.quote(f'--workdir={folder}')} finds it"
    record = read_record("sampling.grid is 'optimal'", run, folder, step, FILE, command)
    found = {int(steps): tuple(times) for steps, times in record["grids"].items()}
    return dataclasses.replace(run, sampling=dataclasses.replace(run.sampling, optimal_times=found))


def read_record(
    given: str, run: Run, folder: epath.Path, step: int, name: str, command: str, part: str | None = None
) -> dict[str, Any]:
    """Returns what a file of a workdir holds, found for the weights and the sampler of a run.

    Args:
        given: the key and its value that ask for it, for messages.
        run, folder, step: see `fingerprint`.
        name: of the file.
        command: what else to do, for messages.
        part: of the file that is meant, where it holds several.

    Raises:
        ValueError: There is none, or it was found for others.
    """
    file = folder / name
    if not file.exists():
        raise ValueError(f"{given}; it must have been found, and {folder} holds no {name}: {command}")
    record: dict[str, Any] = jsonl.read_object(file)
    if part is not None:
        if part not in record:
            known = ", ".join(sorted(record))
            raise ValueError(f"{given}; it must have been found for {part}, and {file} was for {known}: {command}")
        record = record[part]
    for key, values in known_as(run, folder, step).items():
        if (of := record["of"].get(key)) not in values:
            raise ValueError(
                f"{given}; it must have been found for {key} {values[0]}, and {file} was for {of}: {command}"
            )
    return record


def check_sampler(run: Run) -> None:
    """Raises ValueError unless the run's sampler is one whose steps can be measured one by one."""
    sampler = run.sampling.sampler
    if not SAMPLERS[sampler].single_step or run.sampling.stochasticity:
        able = ", ".join(name for name, sampler in SAMPLERS.items() if sampler.single_step)
        raise ValueError(
            f"sampling.sampler, sampling.stochasticity are {sampler!r}, {run.sampling.stochasticity}; they must be "
            "one of "
            f"{able}, whose single steps a grid is found from, and 0"
        )


def find_grids(
    run: Run, weights: Any, steps: list[int], *, candidates: int, labels: np.ndarray, seed: int, factor: float = 1.0
) -> FoundGrids:
    """Finds the grids of least error, each among all subsets of some candidate times.

    Args:
        run: conditioned on labels; see `check_sampler`.
        weights: parameters of its network.
        steps: step counts.
        candidates: how many times grids are made of, more than the largest step count.
        labels: (n,) of the images that errors are measured on.
        seed: of their noise.
        factor: by which the error of a step weighs more than that of the one before; see `cheapest`.
    """
    generator = Generator(run, min(len(labels), run.config.evaluation.batch_size))
    times = candidate_times(run.transport, candidates)
    cost = measure_jumps(generator, weights, times, labels, seed)
    grids = []
    for number in sorted(set(steps)):
        chosen, total = cheapest(cost, number, factor)
        even = np.rint(np.linspace(0, candidates - 1, number + 1)).astype(int)
        uniform = float(np.sum(factor ** np.arange(number) * cost[even[:-1], even[1:]]))
        grids.append(StepGrid(number, times[chosen], total, uniform))
    return FoundGrids(grids, times, cost)


def write(
    found: FoundGrids, run: Run, folder: epath.Path, step: int, *, count: int, seed: int, factor: float = 1.0
) -> None:
    """Writes grids into a workdir, for `with_found_grid`.

    Args:
        found: the grids.
        run: that they were found for.
        folder: its workdir.
        step: of training.
        count: images that errors were measured on.
        seed: of their noise.
        factor: see `find_grids`.
    """
    record = {
        "of": fingerprint(run, folder, step),
        "grids": {grid.steps: grid.times.tolist() for grid in found.grids},
        "measured": {"guidance": run.sampling.guidance, "count": count, "seed": seed, "factor": factor},
        "times": found.times.tolist(),
        "cost": [[value if np.isfinite(value) else None for value in row] for row in found.cost.tolist()],
    }
    files.replace(folder / FILE, (json.dumps(record) + "\n").encode())


def fine_times(times: np.ndarray) -> np.ndarray:
    """Returns times (SMALL_STEPS (n − 1) + 1,) of a path of small steps through all of some candidates (n,)."""
    places = np.arange(SMALL_STEPS * (len(times) - 1) + 1) / SMALL_STEPS
    return np.interp(places, np.arange(len(times)), times)


def measure_jumps(generator: Generator, weights: Any, times: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Measures the errors of all jumps between candidate times, with a progress bar.

    Args:
        generator: of the run.
        weights: parameters of its network.
        times: (n,) candidates, falling.
        labels: of the images that errors are measured on.
        seed: of their noise.

    Returns:
        (n, n) costs; see `optimal_grid.py`.
    """
    path = generator.integrate(weights, fine_times(times), labels, seed=seed, trajectory=True)[::SMALL_STEPS]
    total = len(times) * (len(times) - 1) // 2
    with Bar(total=total, desc="jumps", disable=jax.process_index() > 0, mininterval=1.0) as bar:

        def jump(i: int, j: int) -> np.ndarray:
            bar.update()
            return generator.integrate(weights, times[[i, j]], labels, seed=seed, start=path[i])

        return jump_costs(path, jump)
