"""python -m tim_jax.ablate --config=configs/ablations/objectives.py --workdir=DIR [--only=a,b --seeds=3]"""

import argparse
import pathlib

from tim_jax.config.command_line import Parser, real_numbers, user_errors
from tim_jax.system.allocator import keep_freed
from tim_jax.system.exit_codes import FAILED


def parser() -> Parser:
    """The arguments."""
    made = Parser(
        prog="python -m tim_jax.ablate",
        description="Trains variants of one configuration at equal cost and compares them. "
        "--config.section.key=value changes the configuration that all start from.",
    )
    made.add_config(required=True, help="an ablation, such as configs/ablations/objectives.py")
    made.add_argument("--workdir", required=True, help="its folder; started again in it, an ablation goes on")
    made.add_argument("--only", help="variants, or single runs such as tim/seed_0, with commas between")
    made.add_argument("--seeds", type=int, help="runs of each variant; default: as the file says")
    made.add_argument("--equal", help="time, flops or steps; default: as the file says")
    made.add_argument("--learning-rates", help="of which each variant takes the best, tried by a run of each, such as "
                      "4e-3,8e-3,16e-3; default: as the file says")  # fmt: skip
    made.add_argument("--emas", help="weights of each run that are measured besides those it samples with, such as "
                      "online,fast; default: as the file says")  # fmt: skip
    made.add_argument("--plan", action="store_true", help="only find how many steps each variant takes")
    made.add_argument("--report", action="store_true", help="only table and plot, of the runs that are finished")
    made.add_argument("--launch", choices=("print", "slurm", "kubernetes"), help="print commands, one for every run")
    return made


def main(argv: list[str] | None = None) -> None:
    """The command; argv: its arguments, by default those of the process."""
    execute(*parser().parse(argv))


def execute(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """The command, its line being read."""
    with user_errors():
        modes = [flag for flag in ("launch", "report", "plan") if getattr(args, flag)]
        for flag in modes[1:]:
            raise ValueError(f"--{flag} is given; it must be left out with --{modes[0]}, which does nothing else")

    keep_freed()

    import jax

    from tim_jax.ablation import baselines, budget, job, launch, rates, settings, table
    from tim_jax.system import cluster, devices, paths
    from tim_jax.training.preemption import Stop

    with user_errors():
        cluster.join()  # before Stop: it takes SIGTERM for itself
    with Stop(lambda: "") as stop:
        title = pathlib.Path(args.config).stem
        with user_errors():
            folder = paths.run_folder(args.workdir, "--workdir")
            ablation = settings.load(
                args.config, overrides, seeds=args.seeds, equal=args.equal, emas=names_of(args.emas),
                learning_rates=rates_of(args.learning_rates),
            )  # fmt: skip
            members = job.chosen(ablation, args.only)
            if args.launch is None:
                paths.check_folder(folder, "--workdir")
            budget.check(ablation, budget.read(folder), folder)
            baselines.check(ablation, folder)
            if args.report and budget.read(folder) is None:
                raise ValueError(f"--workdir={folder}: holds no ablation")
            if not args.report:
                job.validate(ablation, folder, members)
                for name in dict.fromkeys(member.variant for member in members if member.variant in ablation.baselines):
                    baselines.find(ablation, name, folder)
            found = rates.chosen(ablation, folder)
            ablation = rates.tuned(ablation, found)
            if args.launch is not None:
                arguments = command_line(args, overrides)
                searching = set(ablation.variants) - set(found) if ablation.learning_rates else set()
                lines = launch.commands(args.launch, title, arguments, members, searching)
                job.check_launch(ablation, args.launch, folder, members)
                return print("\n".join(lines))
        failed, others = 0, [name for name in ablation.names if all(each.variant != name for each in members)]
        if others:
            job.print_once(f"--only leaves out {', '.join(others)}")
        if not args.report:
            devices.announce()
            with user_errors():
                trained = dict.fromkeys(member.variant for member in members if member.variant in ablation.variants)
                planned = budget.make(ablation, folder, list(trained), job.print_once)
            if ablation.learning_rates and not args.plan:
                ablation, planned = job.tune(ablation, planned, folder, title, list(trained), stop)
            failed = 0 if args.plan else job.run_all(ablation, planned, folder, members, stop)
        if jax.process_index() == 0 and not args.plan:
            only = None if args.only is None else members
            print(table.write(ablation, folder, title, only))
            names = table.NAMES if only is None else table.ONLY_NAMES
            print(f"written: {', '.join(str(folder / name) for name in names if (folder / name).exists())}")
            if only is not None:
                print(f"all that is finished: {folder / table.NAMES[0]}")
    if failed:
        job.print_once(f"{failed} of {len(members)} runs failed; the same command tries them again")
        raise SystemExit(FAILED)


def rates_of(text: str | None) -> tuple[float, ...] | None:
    """The learning rates between commas; None where nothing is given."""
    return None if text is None else tuple(real_numbers("learning-rates", text, 0.0))


def names_of(text: str | None) -> tuple[str, ...] | None:
    """The names between commas; None where nothing is given."""
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def command_line(args: argparse.Namespace, overrides: dict[str, str]) -> list[str]:
    """The arguments of the command that do not pick runs, as `launch.commands` takes them."""
    arguments = [f"--config={args.config}", f"--workdir={args.workdir}"]
    arguments += [f"--{name}={getattr(args, name)}" for name in ("seeds", "equal") if getattr(args, name) is not None]
    arguments += [f"--learning-rates={args.learning_rates}"] if args.learning_rates is not None else []
    arguments += [f"--emas={args.emas}"] if args.emas is not None else []
    return arguments + [f"--config.{key}={value}" for key, value in overrides.items()]


if __name__ == "__main__":
    main()
