"""python -m tim_jax.verify [--checks=attention,parity --size=small --workdir=DIR --out=FILE]"""

import argparse

from tim_jax.system.allocator import keep_freed
from tim_jax.system.exit_codes import DONE, FAILED
from tim_jax.system.user_errors import ArgumentParser, failures, nearest, user_errors
from tim_jax.verification import CHECKS, SIZES


def parser() -> ArgumentParser:
    """The arguments."""
    made = ArgumentParser(
        prog="python -m tim_jax.verify", description="Says whether this machine trains rightly, and how fast."
    )
    made.add_argument("--checks", help=f"some of {','.join(CHECKS)}; default: all of them")
    made.add_argument("--size", choices=SIZES, help="of the checks; default: small on a CPU, full elsewhere")
    made.add_argument(
        "--workdir",
        help="folder that checkpoints are tried in, on the disk that runs will have; default: a temporary one",
    )
    made.add_argument("--out", help="file for everything as JSON")
    made.add_argument(
        "--write-reference", help="only write the numbers of this CPU, which others are compared with, to this npz file"
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Checks this machine; returns the exit code, FAILED if anything is wrong."""
    return execute(parser().parse_args(argv))


def execute(args: argparse.Namespace) -> int:
    """The command, its line being read."""
    with user_errors():
        checks = tuple(CHECKS) if args.checks is None else read_checks(args.checks)
        if args.write_reference is not None:
            for name in ("checks", "size", "workdir", "out"):
                if (value := getattr(args, name)) is not None:
                    raise ValueError(f"--{name} is {value}; it must be left out with --write-reference")
        if args.workdir is not None and "checkpoint" not in checks:
            raise ValueError(f"--workdir is {args.workdir}; it must be left out where checkpoint is not among --checks")

    keep_freed()

    import jax

    from tim_jax.system import cluster, devices, paths

    with user_errors():
        out = paths.new_file(args.out, "--out") if args.out is not None else None
        reference = None
        if args.write_reference is not None:
            reference = paths.new_file(args.write_reference, "--write-reference")
        workdir = paths.run_folder(args.workdir, "--workdir") if args.workdir is not None else None
        if workdir is not None:
            paths.check_folder(workdir, "--workdir")
        cluster.join()
        if reference is not None and jax.default_backend() != "cpu":
            raise ValueError(f"--write-reference is {args.write_reference}; it must be left out but on a CPU")

    from tim_jax.verification import job, parity, report, setup, verdicts

    devices.announce()
    if reference is not None:
        with failures(OSError):
            parity.write(reference)
        return DONE
    size = args.size or setup.default_size()
    hosts = job.gather(job.run(checks, setup.Setup(setup.sizes(size), workdir)))
    if jax.process_index() == 0:
        print(report.show(hosts), flush=True)
        if out is not None:
            with failures(OSError):
                report.write(out, hosts)
    return FAILED if report.verdict(hosts) == verdicts.WRONG else DONE


def read_checks(text: str) -> tuple[str, ...]:
    """The names in --checks, in the order in which they run. Raises ValueError for others."""
    names = text.split(",")
    for name in names:
        if name not in CHECKS:
            near = nearest(name, CHECKS)
            must = f"did you mean {near[0]}?" if near else f"checks are {', '.join(CHECKS)}"
            raise ValueError(f"--checks has {name!r}: no such name; {must}")
    return tuple(name for name in CHECKS if name in names)


if __name__ == "__main__":
    raise SystemExit(main())
