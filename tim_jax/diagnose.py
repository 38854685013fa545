"""python -m tim_jax.diagnose --workdir=DIR [--examples=64 --nodes=9 --epsilons=0.0005,0.005,0.05 --out=DIR]"""

import argparse

from tim_jax.config import keys
from tim_jax.config.command_line import Parser, failures, user_errors

MOST_NODES = 1000


def parser() -> Parser:
    """The arguments."""
    made = Parser(
        prog="python -m tim_jax.diagnose",
        description="Errors, sizes and accuracy of dF/dt of a trained run by time and interval, on held-out examples; "
        "how straight its paths are.",
        unread=keys.unread("evaluation", "sampling", but=(*keys.HELD_OUT, "sampling.ema")),
    )
    made.add_argument("--workdir", required=True, help="the run's folder")
    made.add_argument("--examples", type=int, default=64, help="held-out examples in each cell; default: %(default)s")
    made.add_renamed("--rows", "--examples")
    made.add_argument("--nodes", type=int, default=9, help="number of noise levels from 0 to 1; default: %(default)s")
    made.add_argument(
        "--epsilons", default="0.0005,0.005,0.05", help="half steps ε of the central difference; default: %(default)s"
    )
    made.add_argument("--out", help="folder for numbers and pictures; default: the run's")
    return made


def main(argv: list[str] | None = None) -> None:
    """The command; argv: its arguments, by default those of the process."""
    execute(*parser().parse(argv))


def execute(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """The command, its line being read."""
    with user_errors():
        if not 2 <= args.nodes <= MOST_NODES:
            raise ValueError(f"--nodes is {args.nodes}; it must be at least 2, and at most {MOST_NODES}")

    import jax
    import numpy as np

    from tim_jax.config.build import build
    from tim_jax.evaluation import diagnostics
    from tim_jax.evaluation import geometry as drawing
    from tim_jax.runs import geometry, workdir
    from tim_jax.runs.diagnosis import check_predicts, diagnose, read_epsilons
    from tim_jax.runs.generation import check_class_conditional, load_weights
    from tim_jax.runs.input_pipeline import held_out_arrays
    from tim_jax.runs.restoration import check_path
    from tim_jax.system import cluster, compilation_cache, devices, paths
    from tim_jax.training.preemption import Stop

    with user_errors():
        cluster.join()  # before Stop: it takes SIGTERM for itself
    with Stop():
        with user_errors():
            folder = paths.run_folder(args.workdir, "--workdir")
            out = paths.given(args.out, "--out") if args.out is not None else folder
            run = build(workdir.load(folder, overrides))
            compilation_cache.use(run.training.compilation_cache, run.training.compilation_cache_gib)
            check_path(run)
            check_predicts(run)
            paths.check_folder(out, "--out")
            epsilons = read_epsilons(args.epsilons, run)
            x, labels = held_out_arrays(run, folder)
            if not 1 <= args.examples <= len(x):
                raise ValueError(
                    f"--examples is {args.examples}; it must be between 1 and {len(x)}, the held-out examples"
                )
            check_class_conditional(run, folder)
            weights, step = load_weights(run, folder)
        devices.announce()
        picked = np.random.default_rng(0).permutation(len(x))[: args.examples]
        found = diagnose(run, weights, x[picked], labels[picked], args.nodes, epsilons)
        paths_found, images = geometry.follow(run, weights, labels[picked])
        if jax.process_index() == 0:
            found |= {"step": step, "rows": args.examples, "weights": run.sampling.ema, "paths": paths_found}
            print(f"weights {run.sampling.ema!r} of step {step:,}, {args.examples} held-out examples in each cell\n")
            print(f"{diagnostics.as_text(found)}\n\n{drawing.as_text(paths_found)}\n")
            with failures(OSError):
                out.mkdir(parents=True, exist_ok=True)
                diagnostics.write(found, out)
                names = drawing.write(paths_found, images, geometry.columns(), out)
            print(f"written: {', '.join(str(out / name) for name in (*diagnostics.NAMES, *names))}")


if __name__ == "__main__":
    main()
