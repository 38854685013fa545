"""python -m tim_jax.bench NAME [--json FILE] …"""

import difflib
import importlib
import sys

from tim_jax.bench import BENCHES
from tim_jax.system import paths, reporting
from tim_jax.system.exit_codes import DONE, USER_ERROR
from tim_jax.system.user_errors import ArgumentParser, user_errors


def main(argv: list[str] | None = None) -> None:
    """Runs the benchmark that the command line names."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: python -m tim_jax.bench NAME [--json FILE] …\nNAME: {', '.join(BENCHES)}")
        raise SystemExit(DONE if argv else USER_ERROR)
    name = argv[0]
    with user_errors():
        if name not in BENCHES:
            near = difflib.get_close_matches(name, BENCHES, n=1, cutoff=0.0)[0]
            raise ValueError(f"{name}: no such benchmark; did you mean {near}?")
        bench = importlib.import_module(BENCHES[name])
        about = (bench.__doc__ or "").partition("\n")[0]
        parser = ArgumentParser(prog=f"python -m tim_jax.bench {name}", description=about)
        parser.add_argument("--json", help="file for the results, the machine and the versions")
        bench.add_arguments(parser)
        args = parser.parse_args(argv[1:])
        file = paths.new_file(args.json, "--json") if args.json is not None else None
        rows = bench.run(args)
    reporting.show(rows, bench.COLUMNS)
    if file:
        reporting.write(file, name, rows, vars(args))


if __name__ == "__main__":
    main()
