"""python -m tim_jax.pairs --workdir=TEACHER --out=DIR [--rows=50000 --steps=32 --seed=0] [--config.sampling.…=…]
python -m tim_jax.pairs --verify=DIR

Writes pairs (ε, x̂(ε)) of noise and the sample that a trained run makes of it, once, to shards in DIR: what rectified
flow's reflow is trained on (configs/distillation/reflow.py), with --config.data.source=shards --config.data.path=DIR
--config.data.paired_noise=True. Labels, or the captions of the run's own source, take their turns. Stopped or killed,
the same command goes on. With several processes each makes a share of the shards.
"""

import argparse

from tim_jax.config.command_line import MOST
from tim_jax.runs import shard_job
from tim_jax.runs.pairs import Pairs, open_pairs
from tim_jax.system import paths

ROWS, STEPS = 50_000, 32


def main(argv: list[str] | None = None) -> None:
    """The command; argv: its arguments, by default those of the process."""
    parser = shard_job.parser("tim_jax.pairs", __doc__)
    parser.add_argument("--workdir", help="the folder of the run that samples")
    parser.add_argument("--rows", type=int, default=ROWS, help="pairs; default: %(default)s")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the sampler; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the noise; default: %(default)s")
    shard_job.command(parser, "workdir", open_job, argv)


def open_job(args: argparse.Namespace, overrides: dict[str, str]) -> Pairs:
    """What the command line asks for. Raises ValueError."""
    for name, least, most in (("rows", 1, 2**32 - 1), ("steps", 1, MOST), ("seed", 0, 2**32 - 1)):
        if not least <= getattr(args, name) <= most:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least {least} and at most {most}")
    return open_pairs(
        paths.run_folder(args.workdir, "--workdir"),
        overrides,
        count=args.rows,
        steps=args.steps,
        seed=args.seed,
        rows_per_shard=args.rows_per_shard,
    )


if __name__ == "__main__":
    main()
