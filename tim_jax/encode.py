"""python -m tim_jax.encode --config=configs/photos_t2i.py --out=DIR [--examples-per-shard=1000] [--config.…=…]
python -m tim_jax.encode --verify=DIR

Encodes every example of a configuration's source once, by its pretrained modules, to shards in DIR. Train on them with
--config.data.source=shards --config.data.path=DIR --config.data.encode=False. Stopped or killed, the same command goes
on. With several processes each makes a share of the shards.
"""

import argparse

from tim_jax.config.command_line import Parser, load_config
from tim_jax.runs import shard_arguments


def parser() -> Parser:
    """The arguments."""
    made = shard_arguments.parser("tim_jax.encode", __doc__)
    made.add_config(help="a configuration that encodes its examples, such as configs/photos_t2i.py")
    return made


def main(argv: list[str] | None = None) -> None:
    """The command; argv: its arguments, by default those of the process."""
    execute(*parser().parse(argv))


def execute(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """The command, its line being read."""
    shard_arguments.check(args, overrides, parser(), "config")

    from tim_jax.runs import shard_job
    from tim_jax.runs.counting import counted
    from tim_jax.runs.encoding.job import open_encoding

    shard_job.execute(
        args, lambda: open_encoding(counted(load_config(args.config, overrides)), args.examples_per_shard)
    )


if __name__ == "__main__":
    main()
