"""python -m tim_jax.report --workdir=DIR [--out=FILE.html --samples=16 --steps=1,2,4,8,16,32 --samplers=flow_map,heun]

DIR is the folder of a run, or of an ablation. --samples=0 draws nothing, where there is no time for it.
"""

import argparse

from tim_jax.config import keys
from tim_jax.config.command_line import Parser, failures, user_errors, whole_numbers


def parser() -> Parser:
    """The arguments."""
    made = Parser(
        prog="python -m tim_jax.report",
        description="Makes one HTML page of a run or of an ablation, which needs nothing but a browser.",
        unread=keys.unread("evaluation", but=(*keys.HELD_OUT, "evaluation.batch_size", "evaluation.max_images")),
    )
    made.add_argument("--workdir", required=True, help="the folder of a run, or of an ablation")
    made.add_argument("--out", help="the page, such as run.html; default: WORKDIR/report.html")
    made.add_argument(
        "--samples",
        type=int,
        help="number of samples that are drawn for a run at each number of steps; 0: none; default: 16",
    )
    made.add_argument("--steps", help="numbers of steps that they are drawn with; default: 1,2,4,8,16,32")
    made.add_argument(
        "--samplers", help="names of samplers, such as flow_map,heun; default: the run's, and others that suit it"
    )
    return made


def main(argv: list[str] | None = None) -> None:
    """The command; argv: its arguments, by default those of the process."""
    execute(*parser().parse(argv))


def execute(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """The command, its line being read."""
    with user_errors():
        args.steps = whole_numbers("steps", args.steps, least=1) if args.steps is not None else None
        if args.samplers is not None:
            args.samplers = [name.strip() for name in args.samplers.split(",")]

    import jax

    from tim_jax.report.job import ReportSettings, open_report
    from tim_jax.system import cluster, devices
    from tim_jax.training.preemption import Stop

    with user_errors():
        cluster.join()  # before Stop: it takes SIGTERM for itself
    with Stop():
        with user_errors():
            job = open_report(ReportSettings(**vars(args)), overrides)
        devices.announce()
        with user_errors(ValueError), failures(OSError):
            told = job.write()
    if jax.process_index() == 0:
        print(told)


if __name__ == "__main__":
    main()
