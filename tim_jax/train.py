"""python -m tim_jax.train --config=configs/digits.py --workdir=DIR [--config.training.steps=…] [--check]

A run goes on by python -m tim_jax.train --workdir=DIR, with the configuration that it was last started with.
"""

import argparse
import contextlib

from tim_jax.config.command_line import Parser, load_config, user_errors
from tim_jax.system.allocator import keep_freed
from tim_jax.system.exit_codes import DONE, FAILED, RESTART, leave


def parser() -> Parser:
    """The arguments."""
    made = Parser(prog="python -m tim_jax.train", description="Trains a transition model.")
    made.add_config(help="a configuration, such as configs/digits.py; default: that of the run in the workdir")
    made.add_argument("--workdir", help="the run's folder; started again in it, a run goes on")
    made.add_argument("--check", action="store_true", help="one step on made-up examples, nothing written")
    made.add_argument("--min-processes", type=int, help="go on with so few where others are gone; default: with all")
    made.add_argument("--wait", type=float, help="seconds to wait for processes that are missing; default: 300")
    made.add_argument("--profile", default="", help="first and last step of a trace for XProf, such as 100:105")
    return made


def main(argv: list[str] | None = None) -> None:
    """The command; argv: its arguments, by default those of the process."""
    execute(*parser().parse(argv))


def execute(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """The command, its line being read."""
    with user_errors():
        if not args.workdir and not args.check:
            raise ValueError("--workdir: missing; it names the folder that the run writes to")
        if not args.config and not args.workdir:
            raise ValueError("--config: missing; it names what to train, such as configs/digits.py")
        profile = read_profile(args.profile)

    keep_freed()

    from tim_jax.training.goodput import Goodput

    goodput = Goodput()  # before what takes time is imported

    import jax
    import numpy as np

    from tim_jax.config import automatic, identity
    from tim_jax.config.build import build
    from tim_jax.runs import averages, elastic, training, workdir
    from tim_jax.runs.counting import counted
    from tim_jax.runs.input_pipeline import open_pipeline
    from tim_jax.runs.measuring import open_measurement
    from tim_jax.runs.start import check_classes, finished, first_state
    from tim_jax.runs.teachers import with_teachers
    from tim_jax.system import cluster, compilation_cache, devices, files, lock, paths
    from tim_jax.training import warm_start
    from tim_jax.training.preemption import Stop

    with user_errors():
        processes = elastic.asked(args.min_processes, args.wait, args.workdir)
        if processes is None:
            cluster.join()  # before Stop: it takes SIGTERM for itself
        elif not processes.join():
            return print(f"{args.workdir}: the run has ended while this process waited")
    with Stop(lambda: "") as stop, contextlib.ExitStack() as stack:
        with user_errors():
            config = load_config(args.config, overrides) if args.config else workdir.to_go_on(args.workdir, overrides)
            if args.check:
                run = build(counted(config) if config.data.path else config)
                training.check_local(run)
                compilation_cache.use(run.training.compilation_cache, run.training.compilation_cache_gib)
                run = with_teachers(run)
                devices.announce()
                return training.check(run)
            folder = paths.run_folder(args.workdir, "--workdir")
            if profile and not files.is_local(folder):
                raise ValueError(f"--profile is {args.profile}; traces need a local disk, and --workdir is {folder}")
            paths.check_folder(folder, "--workdir")
            workdir.check_place(folder)
            before, latest, given = workdir.recorded(folder), warm_start.latest(folder), config
            first_look = before is None and bool(automatic.open_keys(config))
            if first_look:
                build(config)  # so that what is wrong is told before the data is read
                devices.announce()
            if before is None:
                workdir.check_outside_data(folder, "--workdir", config)
                config = counted(config)
            else:
                config = identity.with_recorded_schedule(before, automatic.as_recorded(config, before))
            run = build(config, planned=processes.devices() if processes else 0)
            training.check_local(run)
            if profile and profile[0] > run.training.steps:
                raise ValueError(
                    f"--profile is {args.profile}; it must begin by the last step, training.steps, which is "
                    f"{run.training.steps}"
                )
            plan = processes.plan(run) if processes else {}
            cache = compilation_cache.use(run.training.compilation_cache, run.training.compilation_cache_gib)
            if before is not None:
                identity.compare(before, run.config, folder)
            run = with_teachers(run)
            measurement = open_measurement(run) if run.evaluation.periodic.every else None
            if measurement is not None:
                measurement.sample_count()
            if run.sampling.grid == "optimal":
                raise ValueError(
                    "sampling.grid is 'optimal'; it must be another grid: an optimal one is found once a run is trained"
                )
            if run.sampling.plan == "learned":
                raise ValueError("sampling.plan is 'learned'; it must be 'sampler' until a run is trained")
            averages.check(run)
            first = first_state(run, folder)
            if before is not None and (line := finished(run, folder)):
                if processes and jax.process_index() == 0:
                    processes.finish()
                return print(line) if jax.process_index() == 0 else None
            if not first_look:
                devices.announce()  # before data is read, which may take minutes
            pipeline = open_pipeline(run)
            check_classes(run, folder, pipeline.source)
            draw = training.sample_pictures(run, pipeline) if training.can_draw(run) else None
            stack.enter_context(lock.locked(folder, jax.process_index() == 0, jax.process_count()))
            # What was found before the lock may not hold any more: another run may have begun there, or gone on.
            changed = (workdir.recorded(folder), warm_start.latest(folder)) != (before, latest)
            if cluster.summed(np.array([changed], np.int64))[0]:
                if (there := workdir.recorded(folder)) is not None:
                    identity.compare(there, run.config, folder)
                check_classes(run, folder, pipeline.source)
                first = first_state(run, folder)
        if jax.process_index() == 0:
            if processes:
                processes.record(plan)
            print(cache, flush=True)
            if before is None and (chosen := automatic.told(given, run.config)):
                print(chosen, flush=True)
        end = training.fit(run, pipeline, folder, first, stop, profile, measurement, draw, goodput)
    if jax.process_index() == 0:
        if processes and not end.stopped:
            processes.finish()
        print(training.last_line(end, folder), flush=True)
    code = RESTART if end.stopped else DONE if end.saved else FAILED
    if end.failures and jax.process_count() == 1:
        leave(code)  # at once: what is left of failed writes complains at length, and not after the last line
    if code != DONE:
        raise SystemExit(code)


def read_profile(text: str) -> tuple[int, int] | None:
    """The (first, last) step of --profile; None for an empty text. Raises ValueError."""
    if not text:
        return None
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ValueError(f"--profile is {text!r}; it must be the first and the last step, such as 100:105")
    return int(first), int(last)


if __name__ == "__main__":
    main()
