"""python -m tim_jax.bench NAME [--json FILE] …"""

import argparse
import importlib

from tim_jax.bench import BENCHES
from tim_jax.bench.arguments import ARGUMENTS
from tim_jax.system.allocator import keep_freed
from tim_jax.system.user_errors import ArgumentParser, user_errors


def parser() -> ArgumentParser:
    """The arguments."""
    made = ArgumentParser(prog="python -m tim_jax.bench", description="Measures speed.")
    names = made.add_subparsers(dest="name", metavar="NAME", required=True)
    for name, add_arguments in ARGUMENTS.items():
        bench = names.add_parser(name, help=add_arguments.__doc__, description=add_arguments.__doc__)
        bench.add_argument("--json", help="file for the results, the machine and the versions")
        add_arguments(bench)
    return made


def main(argv: list[str] | None = None) -> None:
    """Runs the benchmark that the command line names."""
    execute(parser().parse_args(argv))


def execute(args: argparse.Namespace) -> None:
    """The command, its line being read."""
    keep_freed()  # as training does

    from tim_jax.system import paths, reporting

    with user_errors():
        file = paths.new_file(args.json, "--json") if args.json is not None else None
        bench = importlib.import_module(BENCHES[args.name])
        rows = bench.run(args)
    reporting.show(rows, bench.COLUMNS)
    if file:
        reporting.write(file, args.name, rows, vars(args))


if __name__ == "__main__":
    main()
