"""python -m tim_jax.grid --workdir=DIR --steps=1,2,4,8

Finds the step grids `sampling.grid=optimal` on a trained run's own errors and writes them to DIR/grid.json.
"""

import argparse
import sys

from tim_jax.config.command_line import MOST, Parser, failures, user_errors, whole_numbers

MOST_TIMES = 10**4


def parser() -> Parser:
    """The arguments."""
    made = Parser(prog="python -m tim_jax.grid", description="Step grids found on a trained run's own errors.")
    made.add_argument("--workdir", required=True, help="the run's folder")
    made.add_argument("--steps", default="1,2,4,8,16", help="step counts to find grids for, such as 1,4,16")
    made.add_argument("--times", type=int, default=33, help="candidate times; every jump between two is measured")
    made.add_argument("--count", type=int, default=64, help="images that errors are measured on")
    made.add_argument("--factor", type=float, default=1.0, help="weight of a step's error by that of the step before")
    made.add_argument("--seed", type=int, default=0, help="of the noise")
    return made


def main(argv: list[str] | None = None) -> None:
    """The command; argv: its arguments, by default those of the process."""
    execute(*parser().parse(argv))


def execute(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """The command, its line being read."""
    with user_errors():
        steps = whole_numbers("steps", args.steps, least=1)
        if not 2 <= args.count <= MOST:
            raise ValueError(f"--count is {args.count}; it must be at least 2, and at most {MOST}")
        if not 0 <= args.seed < 2**32:
            raise ValueError(f"--seed is {args.seed}; it must be at least 0, and below 2^32")
        if not 0.1 <= args.factor <= 10:
            raise ValueError(f"--factor is {args.factor}; it must lie in [0.1, 10]")
        if args.times > MOST_TIMES:
            raise ValueError(f"--times is {args.times}; it must be at most {MOST_TIMES}")
        if args.times <= max(steps):
            raise ValueError(f"--times is {args.times}; a grid of {max(steps)} steps needs at least {max(steps) + 1}")

    import jax

    from tim_jax.config.build import build
    from tim_jax.runs import step_grid, workdir
    from tim_jax.runs.conditions import class_turns, known_labels
    from tim_jax.runs.generation import check_class_conditional, load_weights
    from tim_jax.system import cluster, devices, paths
    from tim_jax.training.preemption import Stop

    with user_errors():
        cluster.join()  # before Stop: it takes SIGTERM for itself
    with Stop():
        with user_errors():
            folder = paths.run_folder(args.workdir, "--workdir")
            run = build(workdir.load(folder, overrides))
            paths.check_folder(folder, "--workdir")
            step_grid.check_sampler(run)
            check_class_conditional(run, folder)
            weights, step = load_weights(run, folder)
            labels = class_turns(known_labels(run, folder), args.count)
        devices.announce(sys.stderr)
        found = step_grid.find_grids(
            run, weights, steps, candidates=args.times, labels=labels, seed=args.seed, factor=args.factor
        )
        if jax.process_index() > 0:
            return
        with failures(OSError):
            step_grid.write(found, run, folder, step, count=args.count, seed=args.seed, factor=args.factor)
        print("| steps | error | at even noise levels | times |\n| ---: | ---: | ---: | --- |")
        for grid in found.grids:
            times = " ".join(f"{time:.3g}" for time in grid.times)
            print(f"| {grid.steps} | {grid.error:.3g} | {grid.uniform_error:.3g} | {times} |")
        print(
            f"written: {folder / step_grid.FILE}; sampling.grid=optimal takes them, with {run.sampling.sampler} and "
            f"the weights of step {step}"
        )


if __name__ == "__main__":
    main()
