"""python -m tim_jax.bench NAME [--json FILE] …"""

import argparse
import difflib
import importlib
import sys

from tim_jax.bench import BENCHES
from tim_jax.system import reporting
from tim_jax.system.exit_codes import DONE, USER_ERROR


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str):
        print(f"error: {message}; see --help", file=sys.stderr)
        raise SystemExit(USER_ERROR)


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: python -m tim_jax.bench NAME [--json FILE] …\nNAME: {', '.join(BENCHES)}")
        raise SystemExit(DONE if argv else USER_ERROR)
    name = argv[0]
    if name not in BENCHES:
        near = difflib.get_close_matches(name, BENCHES, n=1, cutoff=0.0)[0]
        print(f"error: {name}: no such benchmark; did you mean {near}?", file=sys.stderr)
        raise SystemExit(USER_ERROR)

    bench = importlib.import_module(BENCHES[name])
    parser = Parser(prog=f"python -m tim_jax.bench {name}", description=bench.__doc__.splitlines()[0])
    parser.add_argument("--json", help="file for the rows, the machine and the versions")
    bench.add_arguments(parser)
    args = parser.parse_args(argv[1:])
    try:
        rows = bench.run(args)
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(USER_ERROR) from None
    reporting.show(rows, bench.COLUMNS)
    if args.json:
        reporting.write(args.json, name, rows, vars(args))


if __name__ == "__main__":
    main()
