"""python -m tim_jax.pairs --workdir=TEACHER --out=DIR [--examples=50000 --steps=32 --seed=0] [--config.sampling.…=…]
python -m tim_jax.pairs --verify=DIR

Writes pairs (ε, x̂(ε)) of noise and the sample that a trained run makes of it, once, to shards in DIR: what rectified
flow's reflow is trained on (configs/distillation/reflow.py), with --config.data.source=shards --config.data.path=DIR
--config.data.paired_noise=True. Labels, or the captions of the run's own source, take their turns. Stopped or killed,
the same command goes on. With several processes each makes a share of the shards.
"""

import argparse

from tim_jax.config import keys
from tim_jax.config.command_line import MOST, Parser, user_errors
from tim_jax.runs import shard_arguments

EXAMPLES, STEPS = 50_000, 32


def parser() -> Parser:
    """The arguments."""
    made = shard_arguments.parser("tim_jax.pairs", __doc__, keys.BY_DRAWING)
    made.add_argument("--workdir", help="the folder of the run that samples")
    made.add_argument("--examples", type=int, default=EXAMPLES, help="number of pairs; default: %(default)s")
    made.add_renamed("--rows", "--examples")
    made.add_argument("--steps", type=int, default=STEPS, help="steps of the sampler; default: %(default)s")
    made.add_argument("--seed", type=int, default=0, help="seed of the noise; default: %(default)s")
    return made


def main(argv: list[str] | None = None) -> None:
    """The command; argv: its arguments, by default those of the process."""
    execute(*parser().parse(argv))


def execute(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """The command, its line being read."""
    shard_arguments.check(args, overrides, parser(), "workdir")
    with user_errors():
        for name, least, most in (("examples", 1, 2**32 - 1), ("steps", 1, MOST), ("seed", 0, 2**32 - 1)):
            if not least <= getattr(args, name) <= most:
                raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least {least} and at most {most}")

    from tim_jax.runs import shard_job
    from tim_jax.runs.pairs import open_pairs
    from tim_jax.system import paths

    shard_job.execute(
        args,
        lambda: open_pairs(
            paths.run_folder(args.workdir, "--workdir"),
            overrides,
            count=args.examples,
            steps=args.steps,
            seed=args.seed,
            rows_per_shard=args.examples_per_shard,
        ),
    )


if __name__ == "__main__":
    main()
