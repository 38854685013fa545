"""python -m tim_jax.search --workdir=DIR --reward=brightness --steps=8 [--budgets=1,2,4,8,16 --methods=… --out=DIR]

What a search for a reward is worth: the mean reward of a trained run's samples by network evaluations, for
best_of, starts and budget_forcing, in a table and a plot. `python -m tim_jax.sample --search=…` draws such samples.
"""

import argparse

from tim_jax.config import keys
from tim_jax.config.command_line import MOST, Parser, failures, user_errors, whole_numbers, words

COUNT = 64


def parser() -> Parser:
    """The arguments."""
    made = Parser(
        prog="python -m tim_jax.search",
        description="Compares searches for samples of a high reward, by number of network evaluations.",
        unread=keys.BY_DRAWING,
    )
    made.add_argument("--workdir", required=True, help="the run's folder")
    made.add_argument(
        "--reward", required=True, help="name of the reward: brightness, classifier, similarity, or a plugin's"
    )
    made.add_argument("--classifier", default="", help="file of the classifier of a reward; default: "
                      "objective.reward.classifier")  # fmt: skip
    made.add_argument(
        "--methods", default="best_of,starts,budget_forcing", help="names of searches; default: %(default)s"
    )
    made.add_argument(
        "--budgets", default="1,2,4,8,16", help="multiples of the evaluations of one sample; default: %(default)s"
    )
    made.add_argument("--steps", type=int, default=8, help="steps of the sampler; default: %(default)s")
    made.add_argument("--count", type=int, default=COUNT, help="samples for each of them; default: %(default)s")
    made.add_argument("--radius", type=float, help="for starts: how far the next start may be; default: 0.5")
    made.add_argument("--seed", type=int, default=0, help="seed of the noise; default: %(default)s")
    made.add_argument("--out", help="folder for table and plot; default: the run's")
    return made


def main(argv: list[str] | None = None) -> None:
    """The command; argv: its arguments, by default those of the process."""
    execute(*parser().parse(argv))


def execute(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """The command, its line being read."""
    with user_errors():
        budgets = whole_numbers("budgets", args.budgets, least=1)
        methods = words("methods", args.methods)
        for name, least, most in (("steps", 1, MOST), ("count", 2, MOST), ("seed", 0, 2**32 - 1)):
            if not least <= getattr(args, name) <= most:
                raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least {least} and at most {most}")

    import jax

    from tim_jax.evaluation import search as drawing
    from tim_jax.runs.search_curves import open_curves
    from tim_jax.system import cluster, devices, paths
    from tim_jax.training.preemption import Stop

    with user_errors():
        cluster.join()  # before Stop: it takes SIGTERM for itself
    with Stop():
        with user_errors():
            folder = paths.run_folder(args.workdir, "--workdir")
            out = paths.given(args.out, "--out") if args.out is not None else folder
            paths.check_folder(out, "--out")
            curves = open_curves(
                folder, overrides, methods, budgets, args.reward, classifier=args.classifier, radius=args.radius,
                steps=args.steps, count=args.count, seed=args.seed,
            )  # fmt: skip
        devices.announce()
        with failures(OSError, ValueError):
            found = curves.measure()
            if jax.process_index() == 0:
                drawing.write(found, out)
                print(drawing.as_markdown(found))
                print(f"written: {', '.join(str(out / name) for name in drawing.NAMES)}")


if __name__ == "__main__":
    main()
