"""python -m tim_jax.grid --workdir=DIR --steps=1,2,4,8

Finds the step grids `sampling.grid=optimal` on a trained run's own errors and writes them to DIR/grid.json.
"""

import argparse
import dataclasses
import hashlib
import json

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from tim_jax import cluster, files, workdir
from tim_jax import config as configuration
from tim_jax.command_line import Parser, user_errors, whole_numbers
from tim_jax.generate import Generator, check_by_class, cycle_labels, load_weights
from tim_jax.training import checksums
from tim_jax.training.preemption import Stop
from tim_jax.transitions import SAMPLERS
from tim_jax.transitions.optimal_grid import candidate_times, cheapest, jump_costs

FILE = "grid.json"
SMALL_STEPS = 4  # steps of the path that jumps are measured against, from a candidate to the next


def fingerprint(run: configuration.Run, folder: epath.Path, step: int) -> dict:
    """What a grid belongs to: the weights, by their checkpoint's checksums, and the sampler."""
    manifests = [path for path in (folder / "checkpoints" / str(step)).iterdir() if checksums.NAME.fullmatch(path.name)]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(manifests))).hexdigest()
    return {"step": step, "checkpoint": digest, "weights": run.sampling_weights, "sampler": run.sampling.sampler}


def with_found_grid(run: configuration.Run, folder: epath.Path, step: int) -> configuration.Run:
    """The run, if `sampling.grid` is 'optimal' with the times found for the weights of this step.

    Raises ValueError, naming the command, if there are none for these weights and this sampler.
    """
    if run.sampling.grid != "optimal":
        return run
    command = f"python -m tim_jax.grid --workdir={folder} finds it"
    if not (folder / FILE).exists():
        raise ValueError(f"sampling.grid is 'optimal', but {folder} holds no {FILE}: {command}")
    record = json.loads((folder / FILE).read_text())
    for key, value in fingerprint(run, folder, step).items():
        if record["of"].get(key) != value:
            raise ValueError(
                f"sampling.grid is 'optimal', but {folder / FILE} was found for {key} {record['of'].get(key)}, "
                f"not {value}: {command}"
            )
    found = {int(steps): tuple(times) for steps, times in record["grids"].items()}
    return dataclasses.replace(run, sampling=dataclasses.replace(run.sampling, found=found))


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m tim_jax.grid", description="Step grids found on a trained run's own errors.")
    parser.add_argument("--workdir", required=True, help="the run's folder")
    parser.add_argument("--steps", default="1,2,4,8,16", help="step counts to find grids for, such as 1,4,16")
    parser.add_argument("--times", type=int, default=33, help="candidate times; every jump between two is measured")
    parser.add_argument("--count", type=int, default=64, help="images that errors are measured on")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    args, overrides = parser.parse(argv)
    with user_errors():
        cluster.join()  # before Stop: it takes SIGTERM for itself
    find(args, overrides)


@Stop()
def find(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """The command, its line being read."""
    with user_errors():
        steps = whole_numbers("steps", args.steps, least=1)
        if args.count < 2:
            raise ValueError(f"--count is {args.count}; it must be at least 2")
        if args.seed < 0:
            raise ValueError(f"--seed is {args.seed}; it must be at least 0")
        if args.times <= max(steps):
            raise ValueError(f"--times is {args.times}; a grid of {max(steps)} steps needs at least {max(steps) + 1}")
        folder = epath.Path(args.workdir)
        run = configuration.build(workdir.load(folder, overrides))
        sampler = run.sampling.sampler
        if not SAMPLERS[sampler].alone or run.sampling.stochasticity:
            able = ", ".join(name for name, sampler in SAMPLERS.items() if sampler.alone)
            raise ValueError(
                f"sampling.sampler is {sampler!r} with stochasticity {run.sampling.stochasticity}; a grid is found "
                f"from single steps of {able}, without stochasticity"
            )
        check_by_class(run, folder)
        weights, step = load_weights(run, folder)

    generator = Generator(run, min(args.count, run.config.evaluation.batch_size))
    labels = cycle_labels(run.config.model.num_classes, args.count)
    times = candidate_times(run.transport, args.times)
    cost = measure(generator, weights, times, labels, args.seed)
    grids, rows = {}, []
    for count in sorted(set(steps)):
        way, total = cheapest(cost, count)
        grids[count] = times[way].tolist()
        even = np.rint(np.linspace(0, args.times - 1, count + 1)).astype(int)
        rows.append((count, total, float(cost[even[:-1], even[1:]].sum()), times[way]))
    if jax.process_index() > 0:
        return
    record = {
        "of": fingerprint(run, folder, step),
        "grids": grids,
        "measured": {"guidance": run.sampling.guidance, "count": args.count, "seed": args.seed},
        "times": times.tolist(),
        "cost": [[value if np.isfinite(value) else None for value in row] for row in cost.tolist()],
    }
    files.replace(folder / FILE, (json.dumps(record) + "\n").encode())
    print("| steps | error | at even noise levels | times |\n| ---: | ---: | ---: | --- |")
    for count, total, even, way in rows:
        print(f"| {count} | {total:.3g} | {even:.3g} | {' '.join(f'{time:.3g}' for time in way)} |")
    print(f"written: {folder / FILE}; sampling.grid=optimal takes them, with {sampler} and the weights of step {step}")


def measure(generator: Generator, weights, times: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
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


if __name__ == "__main__":
    main()
