"""python -m tim_jax.prefer --workdir=RUN --reward=brightness --out=DIR [--against=RUN --pairs=4000 --steps=16 --seed=0]

Draws pairs of samples of a run and says which of two a reward prefers: one of the table REWARDS, or a plugin's. DIR
gets the images and preferences.jsonl, as the source `preferences` reads them. Both samples of a pair are of one label,
or of one caption of the run's own source, which take their turns. With --against the second is another run's from the
same noise, so that the share of pairs in which the first is preferred compares the two.
"""

import argparse

from tim_jax.config import keys
from tim_jax.config.command_line import MOST, Parser, user_errors

PAIRS, STEPS = 4000, 16


def parser() -> Parser:
    """The arguments."""
    made = Parser(
        prog="python -m tim_jax.prefer",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        unread=keys.BY_DRAWING,
    )
    made.add_argument("--workdir", required=True, help="the folder of the run that samples")
    made.add_argument(
        "--against", default="", help="the folder of another run, whose samples are the second of each pair"
    )
    made.add_argument("--reward", required=True, help="name of the reward, such as brightness")
    made.add_argument("--out", required=True, help="a new folder")
    made.add_argument("--pairs", type=int, default=PAIRS, help="number of pairs; default: %(default)s")
    made.add_argument("--steps", type=int, default=STEPS, help="steps of the sampler; default: %(default)s")
    made.add_argument("--seed", type=int, default=0, help="seed of the noise; default: %(default)s")
    return made


def main(argv: list[str] | None = None) -> None:
    """The command; argv: its arguments, by default those of the process."""
    execute(*parser().parse(argv))


def execute(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """The command, its line being read."""
    with user_errors():
        for name, least, most in (("pairs", 1, 2**31 - 1), ("steps", 1, MOST), ("seed", 0, 2**32 - 1)):
            if not least <= getattr(args, name) <= most:
                raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least {least} and at most {most}")

    import jax

    from tim_jax.config.command_line import failures
    from tim_jax.runs.preferences import check_out, open_comparison
    from tim_jax.system import cluster, devices, paths
    from tim_jax.training.preemption import Stop

    with user_errors():
        cluster.join()  # before Stop: it takes SIGTERM for itself
    with Stop():
        with user_errors():
            folders = [paths.run_folder(args.workdir, "--workdir")]
            folders += [paths.run_folder(args.against, "--against")] if args.against else []
            out = check_out(args.out)
            comparison = open_comparison(
                folders, overrides, args.reward, count=args.pairs, steps=args.steps, seed=args.seed
            )
        devices.announce()
        with failures(OSError, ValueError):
            said = comparison.write(out)
    if jax.process_index() == 0:
        print(said)


if __name__ == "__main__":
    main()
