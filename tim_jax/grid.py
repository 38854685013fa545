"""python -m tim_jax.grid --workdir=DIR --steps=1,2,4,8

Finds the step grids `sampling.grid=optimal` on a trained run's own errors and writes them to DIR/grid.json; or, with
--kind=learned, trains times and weights of its sampler for `sampling.plan=learned`: DIR/learned_plan.json.
"""

import argparse
import sys
from typing import Any

from tim_jax.config import keys
from tim_jax.config.command_line import MOST, Parser, failures, user_errors, whole_numbers

MOST_TIMES = 10**4
KINDS = ("optimal", "learned")
ITERATIONS = 400


def parser() -> Parser:
    """The arguments."""
    made = Parser(
        prog="python -m tim_jax.grid",
        description="Finds step grids, or trains plans, for a trained run by its own errors.",
        unread=keys.unread("evaluation", "sampling.batch_size", but=(*keys.HELD_OUT, "evaluation.batch_size")),
    )
    made.add_argument("--workdir", required=True, help="the run's folder")
    made.add_argument(
        "--kind",
        choices=KINDS,
        default="optimal",
        help="step grids by dynamic programming, or learned plans; default: %(default)s",
    )
    made.add_argument("--steps", default="1,2,4,8,16", help="numbers of steps to find them for; default: %(default)s")
    made.add_argument(
        "--times",
        type=int,
        default=33,
        help="number of candidate times, with 4 small steps between neighbours; default: %(default)s",
    )
    made.add_argument(
        "--count",
        type=int,
        default=64,
        help="number of images that errors are measured on, or plans learned from; default: %(default)s",
    )
    made.add_argument(
        "--factor", type=float, help="weight of a step's error relative to that of the step before; default: 1"
    )
    made.add_argument("--iterations", type=int, help=f"steps of Adam, for learned plans; default: {ITERATIONS}")
    made.add_argument("--seed", type=int, default=0, help="seed of the noise; default: %(default)s")
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
        if args.factor is not None and not 0.1 <= args.factor <= 10:
            raise ValueError(f"--factor is {args.factor}; it must lie in [0.1, 10]")
        if args.iterations is not None and not 1 <= args.iterations <= MOST:
            raise ValueError(f"--iterations is {args.iterations}; it must be at least 1, and at most {MOST}")
        for flag, kind in (("factor", "optimal"), ("iterations", "learned")):
            if getattr(args, flag) is not None and args.kind != kind:
                raise ValueError(f"--{flag} is {getattr(args, flag)}; it must be left out with --kind={args.kind}")
        if args.times > MOST_TIMES:
            raise ValueError(f"--times is {args.times}; it must be at most {MOST_TIMES}")
        if args.times <= max(steps):
            raise ValueError(f"--times is {args.times}; a grid of {max(steps)} steps needs at least {max(steps) + 1}")

    import jax

    from tim_jax.config.build import build
    from tim_jax.runs import learned_plan, step_grid, workdir
    from tim_jax.runs.conditions import known_labels
    from tim_jax.runs.generation import check_class_conditional, load_weights
    from tim_jax.runs.restoration import check_samples
    from tim_jax.system import cluster, compilation_cache, devices, paths
    from tim_jax.training.preemption import Stop

    with user_errors():
        cluster.join()  # before Stop: it takes SIGTERM for itself
    with Stop():
        with user_errors():
            folder = paths.run_folder(args.workdir, "--workdir")
            run = build(workdir.load(folder, overrides))
            compilation_cache.use(run.training.compilation_cache, run.training.compilation_cache_gib)
            check_samples(run, "grids and plans, which are found from normal noise")
            paths.check_folder(folder, "--workdir")
            if args.kind == "optimal":
                step_grid.check_sampler(run)
            check_class_conditional(run, folder)
            weights, step = load_weights(run, folder)
            if args.kind == "learned":
                run = learned_plan.begin_from(step_grid.with_found_grid(run, folder, step), steps)
            counts = known_labels(run, folder)
        devices.announce(sys.stderr)
        made = find if args.kind == "optimal" else learn
        lines, left = made(args, run, weights, step, folder, steps, counts)
        if jax.process_index() == 0:
            print("\n".join(lines))
        if left:
            with user_errors():
                raise ValueError(left)


def find(
    args: argparse.Namespace, run: Any, weights: Any, step: int, folder: Any, steps: list[int], counts: Any
) -> tuple[list[str], str]:
    """Finds and writes grids; the lines to print, and what was refused, or ""."""
    import jax

    from tim_jax.runs import step_grid
    from tim_jax.runs.conditions import class_turns

    labels, factor = class_turns(counts, args.count), 1.0 if args.factor is None else args.factor
    found = step_grid.find_grids(
        run, weights, steps, candidates=args.times, labels=labels, seed=args.seed, factor=factor
    )
    if jax.process_index() == 0:
        with failures(OSError):
            step_grid.write(found, run, folder, step, count=args.count, seed=args.seed, factor=factor)
    lines = ["| steps | error | at even noise levels | times |", "| ---: | ---: | ---: | --- |"]
    for grid in found.grids:
        times = " ".join(f"{time:.3g}" for time in grid.times)
        lines.append(f"| {grid.steps} | {grid.error:.3g} | {grid.uniform_error:.3g} | {times} |")
    written = f"written: {folder / step_grid.FILE}; sampling.grid=optimal takes them, with {run.sampling.sampler} and"
    return [*lines, f"{written} the weights of step {step}"], ""


def learn(
    args: argparse.Namespace, run: Any, weights: Any, step: int, folder: Any, steps: list[int], counts: Any
) -> tuple[list[str], str]:
    """Learns plans and writes those that help; the lines to print, and what was refused, or ""."""
    import jax

    from tim_jax.runs import learned_plan
    from tim_jax.runs.conditions import class_turns
    from tim_jax.runs.generation import Generator

    labels = class_turns(counts, 2 * args.count)
    iterations = ITERATIONS if args.iterations is None else args.iterations
    generator = Generator(run, min(args.count, run.config.evaluation.batch_size))
    learned = learned_plan.learn(
        generator, weights, steps, labels=labels, iterations=iterations, candidates=args.times, seed=args.seed
    )
    better = [one for one in learned if one.helps]
    if better and jax.process_index() == 0:
        with failures(OSError):
            learned_plan.write(better, run, folder, step, count=args.count, seed=args.seed, iterations=iterations)
    lines = ["| steps | off before | off after | times |", "| ---: | ---: | ---: | --- |"]
    for one in learned:
        times = " ".join(f"{time:.3g}" for time in one.plan.t)
        lines.append(f"| {one.steps} | {one.before:.3g} | {one.after:.3g} | {times} |")
    if better:
        lines.append(
            f"written: {folder / learned_plan.FILE}; sampling.plan=learned takes them, with {run.sampling.sampler}, "
            f"guidance {run.sampling.guidance:g} and the weights of step {step}"
        )
    left = ", ".join(str(one.steps) for one in learned if not one.helps)
    refused = (
        f"--steps has {left}; what was learned for them is not written, as it brings no sample of other noise nearer"
    )
    return lines, refused if left else ""


if __name__ == "__main__":
    main()
