"""The arguments of the commands that make shards, tim_jax.encode and tim_jax.pairs; what they do is in `shard_job`."""

import argparse
from collections.abc import Mapping

from tim_jax.config import keys
from tim_jax.config.command_line import Parser, user_errors

EXAMPLES_PER_SHARD = 1000


def parser(name: str, description: str | None, unread: keys.Unread = keys.Unread()) -> Parser:
    """The arguments that all such commands have.

    Args:
        name: of the command's module.
        description: of what it does.
        unread: keys that it does not read.
    """
    made = Parser(
        prog=f"python -m {name}",
        description=description,
        formatter_class=argparse.RawTextHelpFormatter,
        unread=unread,
    )
    made.add_argument("--out", help="the folder that shards are written to")
    made.add_argument(
        "--examples-per-shard", type=int, default=EXAMPLES_PER_SHARD, help="size of a shard; default: %(default)s"
    )
    made.add_renamed("--rows-per-shard", "--examples-per-shard")
    made.add_argument("--verify", help="a folder of shards whose checksums are to be compared; nothing is made")
    return made


def check(args: argparse.Namespace, overrides: Mapping[str, str], made: Parser, needed: str) -> None:
    """Ends the process for an argument that is missing or wrong, or that has no effect with --verify.

    Args:
        args: the arguments.
        overrides: keys that are changed.
        made: the parser.
        needed: one without which nothing can be made.
    """
    with user_errors():
        if args.verify is not None:
            given = {name.replace("_", "-"): value for name, value in vars(args).items() if name != "verify"}
            given = {flag: value for flag, value in given.items() if value != made.get_default(flag.replace("-", "_"))}
            for flag, value in (given | {f"config.{key}": text for key, text in overrides.items()}).items():
                raise ValueError(f"--{flag} is {value}; it must be left out with --verify, which makes nothing")
            return
        for name in (needed, "out"):
            if not getattr(args, name):
                raise ValueError(f"--{name}: missing; see --help")
        if args.examples_per_shard < 1:
            raise ValueError(f"--examples-per-shard is {args.examples_per_shard}; it must be at least 1")
