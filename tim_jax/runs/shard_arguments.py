"""The arguments of the commands that make shards, tim_jax.encode and tim_jax.pairs; what they do is in `shard_job`."""

import argparse

from tim_jax.config.command_line import Parser, user_errors

EXAMPLES_PER_SHARD = 1000


def parser(name: str, description: str | None) -> Parser:
    """The arguments that all such commands have.

    Args:
        name: of the command's module.
        description: of what it does.
    """
    made = Parser(prog=f"python -m {name}", description=description, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--out", help="the folder that shards are written to")
    made.add_argument(
        "--examples-per-shard", type=int, default=EXAMPLES_PER_SHARD, help="size of a shard; default: %(default)s"
    )
    made.add_renamed("--rows-per-shard", "--examples-per-shard")
    made.add_argument("--verify", help="a folder of shards whose checksums are to be compared; nothing is made")
    return made


def check(args: argparse.Namespace, needed: str) -> None:
    """Ends the process for an argument that is missing or wrong.

    Args:
        args: the arguments.
        needed: one without which nothing can be made.
    """
    if args.verify is not None:
        return
    with user_errors():
        for name in (needed, "out"):
            if not getattr(args, name):
                raise ValueError(f"--{name}: missing; see --help")
        if args.examples_per_shard < 1:
            raise ValueError(f"--examples-per-shard is {args.examples_per_shard}; it must be at least 1")
