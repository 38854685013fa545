"""python -m tim_jax.plan --config=configs/imagenet256_xl.py --topology=v5p:4x4x8[,h100:4x8,…] [--json FILE]

For an objective that learns from a teacher, --teacher=CONFIG gives its configuration in place of a checkpoint.
"""

import argparse

from tim_jax.config.command_line import Parser, load_config, user_errors
from tim_jax.system import topologies
from tim_jax.system.exit_codes import DONE, FAILED


def parser() -> Parser:
    """The arguments."""
    made = Parser(prog="python -m tim_jax.plan", description="Plans a run for devices that are not there.")
    made.add_config(required=True, help="a configuration, such as configs/imagenet256_xl.py")
    examples = ",".join(topologies.EXAMPLES)
    made.add_argument("--topology", required=True, help=f"one or more, such as {examples}")
    made.add_config("--teacher", help="configuration of the model that is learnt from; default: of teacher.checkpoint")
    made.add_argument(
        "--measured", help="file of python -m tim_jax.verify --out=FILE: what was measured on such devices"
    )
    made.add_argument("--json", help="file for the plans")
    return made


def main(argv: list[str] | None = None) -> int:
    """Plans a run; returns the exit code, FAILED if it does not fit somewhere."""
    return execute(*parser().parse(argv))


def execute(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    """The command, its line being read."""
    names = args.topology.split(",")
    with user_errors():
        for name in names:
            topologies.check(name)

    from tim_jax.plan import job, measured, report
    from tim_jax.system import paths

    with user_errors():
        config = load_config(args.config, overrides)
        file = paths.new_file(args.json, "--json") if args.json is not None else None
        topologies.host_devices(names)
        devices = [topologies.topology(name) for name in names]
        found = measured.read(args.measured, devices) if args.measured is not None else None
        models, plans = job.models_of(config, args.teacher, devices[0]), []
        for each in devices:
            plans.append(job.make_plan(config, each, models, found if found and found.of(each) else None))
            print(report.show(plans[-1]), flush=True)
            print()
    if len(plans) > 1:
        print(report.compare(plans))
    if file:
        report.write(file, plans)
    return DONE if all(plan.fits for plan in plans) else FAILED


if __name__ == "__main__":
    raise SystemExit(main())
