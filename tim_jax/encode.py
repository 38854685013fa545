"""python -m tim_jax.encode --config=configs/photos_t2i.py --out=DIR [--rows-per-shard=1000] [--config.…=…]
python -m tim_jax.encode --verify=DIR

Encodes every row of a configuration's source once, by its frozen parts, to shards in DIR. Train on them with
--config.data.source=shards --config.data.path=DIR --config.data.encode=False. Stopped or killed, the same command goes
on. With several processes each makes a share of the shards.
"""

import argparse

from tim_jax.config.command_line import load_config
from tim_jax.data import summary
from tim_jax.runs import shard_job
from tim_jax.runs.encoding.job import Encoding
from tim_jax.runs.encoding.work import open_work, run_here
from tim_jax.system import compilation_cache


def main(argv: list[str] | None = None) -> None:
    parser = shard_job.parser("tim_jax.encode", __doc__)
    parser.add_argument("--config", help="a configuration that encodes its rows, such as configs/photos_t2i.py")
    shard_job.command(parser, "config", open_job, argv)


def open_job(args: argparse.Namespace, overrides: dict[str, str]) -> Encoding:
    """What the command line asks for. Raises ValueError."""
    run = run_here(load_config(args.config, overrides))
    kept = compilation_cache.use(run.config.training.compilation_cache)
    job = Encoding(run, open_work(run, args.rows_per_shard))
    shard_job.say(f"{kept}\n{summary.summary(job.work.source, job.work.plan)}")
    return job


if __name__ == "__main__":
    main()
