"""Step grids found for a run's weights, kept in its workdir by python -m tim_jax.grid."""

import dataclasses
import json

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from tim_jax.config.run import Run
from tim_jax.runs.generation import Generator
from tim_jax.training import checksums
from tim_jax.transitions.sampling.optimal_grid import jump_costs

FILE = "grid.json"
SMALL_STEPS = 4  # steps of the path that jumps are measured against, from a candidate to the next


def fingerprint(run: Run, folder: epath.Path, step: int) -> dict:
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
    """The run, if `sampling.grid` is 'optimal' with the times found for the weights of this step.

    Raises ValueError, naming the command, if there are none for these weights and this sampler.
    """
    if run.sampling.grid != "optimal":
        return run
    command = f"python -m tim_jax.grid --workdir={folder} finds it"
    if not (folder / FILE).exists():
        raise ValueError(f"sampling.grid is 'optimal', but {folder} holds no {FILE}: {command}")
    record = json.loads((folder / FILE).read_text())
    for key, values in known_as(run, folder, step).items():
        if record["of"].get(key) not in values:
            raise ValueError(
                f"sampling.grid is 'optimal', but {folder / FILE} was found for {key} {record['of'].get(key)}, "
                f"not {values[0]}: {command}"
            )
    found = {int(steps): tuple(times) for steps, times in record["grids"].items()}
    return dataclasses.replace(run, sampling=dataclasses.replace(run.sampling, optimal_times=found))


def measure_jumps(generator: Generator, weights, times: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """The costs of all jumps between candidate times (see `optimal_grid.py`), with a bar of progress."""
    between = np.arange(SMALL_STEPS * (len(times) - 1) + 1) / SMALL_STEPS
    fine = np.interp(between, np.arange(len(times)), times)
    path = generator.along(weights, fine, labels, seed, trajectory=True)[::SMALL_STEPS]
    total = len(times) * (len(times) - 1) // 2
    with tqdm(total=total, desc="jumps", disable=jax.process_index() > 0, mininterval=1.0) as bar:

        def step(i: int, j: int) -> np.ndarray:
            bar.update()
            return generator.along(weights, times[[i, j]], labels, seed, x=path[i])

        return jump_costs(path, step)
