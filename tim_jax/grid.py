"""python -m tim_jax.grid --workdir=DIR --steps=1,2,4,8

Finds the step grids `sampling.grid=optimal` on a trained run's own errors and writes them to DIR/grid.json.
"""

import argparse
import json

import jax
import numpy as np
from etils import epath

from tim_jax.config.build import build
from tim_jax.config.command_line import Parser, user_errors, whole_numbers
from tim_jax.runs import workdir
from tim_jax.runs.generation import Generator, check_by_class, cycle_labels, load_weights
from tim_jax.runs.step_grid import FILE, fingerprint, measure_jumps
from tim_jax.system import cluster, files
from tim_jax.training.preemption import Stop
from tim_jax.transitions import SAMPLERS
from tim_jax.transitions.sampling.optimal_grid import candidate_times, cheapest


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
        run = build(workdir.load(folder, overrides))
        sampler = run.sampling.sampler
        if not SAMPLERS[sampler].single_step or run.sampling.stochasticity:
            able = ", ".join(name for name, sampler in SAMPLERS.items() if sampler.single_step)
            raise ValueError(
                f"sampling.sampler is {sampler!r} with stochasticity {run.sampling.stochasticity}; a grid is found "
                f"from single steps of {able}, without stochasticity"
            )
        check_by_class(run, folder)
        weights, step = load_weights(run, folder)

    generator = Generator(run, min(args.count, run.config.evaluation.batch_size))
    labels = cycle_labels(run.config.model.num_classes, args.count)
    times = candidate_times(run.transport, args.times)
    cost = measure_jumps(generator, weights, times, labels, args.seed)
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


if __name__ == "__main__":
    main()
