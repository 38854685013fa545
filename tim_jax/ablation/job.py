"""The job of python -m tim_jax.ablate: which runs there are, whether they can be made, and all of them one by one."""

import contextlib
import difflib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from tim_jax.ablation import baselines, budget, rates, runs, table
from tim_jax.ablation.settings import Ablation, Member
from tim_jax.config.build import build
from tim_jax.runs import workdir
from tim_jax.runs.input_pipeline import open_pipeline
from tim_jax.runs.measuring import Measurement, open_measurement
from tim_jax.runs.start import first_state
from tim_jax.runs.teachers import with_teachers
from tim_jax.system import lock
from tim_jax.system.exit_codes import RESTART
from tim_jax.system.user_errors import user_errors
from tim_jax.training import warm_start
from tim_jax.training.preemption import Stop

# Of a reference's fingerprint, how images are made comparable; and of the protocol, of what samples.
MEASURED_BY = ("size", "preprocessing", "features", "labels", "levels", "samples")


def chosen(ablation: Ablation, only: str | None) -> list[Member]:
    """Returns the runs that `--only` names, of variants and baselines; all for None. Raises ValueError."""
    members = ablation.members()
    if only is None:
        return members
    by_name = {str(member): [member] for member in members}
    names = ablation.names
    by_name |= {name: [member for member in members if member.variant == name] for name in names}
    there = f"there are {', '.join(names)}, each with seed_0 to seed_{ablation.seeds - 1}"
    asked = [name.strip() for name in only.split(",") if name.strip()]
    if not asked:
        raise ValueError(f"--only is {only!r}; it must name variants or runs: {there}")
    for name in asked:
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name if "/" in name else names, n=1, cutoff=0.0)[0]
            raise ValueError(f"--only has {name!r}: no such variant or run; did you mean {near}? ({there})")
    picked = {member for name in asked for member in by_name[name]}
    return [member for member in members if member in picked]


def validate(ablation: Ablation, folder: epath.Path, members: list[Member]) -> None:
    """Checks what is to be run before anything is trained.

    Args:
        ablation: the ablation.
        folder: its folder.
        members: the runs; of the other variants only the reference is looked at, and only if these need it.

    Raises:
        ValueError: naming the variant, if it cannot be built, if its data or the weights that it starts from are
            missing, if what was begun of it in the folder has learnt from another teacher, or if what is finished was
            measured otherwise.
    """
    opened = []
    for name in _needed(ablation, folder, members):
        try:
            run = with_teachers(build(ablation.config(name)))
            runs.network_evaluations(run, ablation.sampler_steps)
            places = [folder / str(member) for member in members if member.variant == name]
            begun = [place for place in places if warm_start.latest(place)]
            for place in begun + [place for place in places if place not in begun][:1]:
                first_state(run, place)
            read = {part: run.config[part].to_json() for part in ("data", "loader", "codecs", "evaluation", "model")}
            if read not in opened:
                open_pipeline(run)
                _check_measured_alike(ablation, open_measurement(run), folder)
                opened.append(read)
        except ValueError as error:
            raise ValueError(f"variant {name!r}: {error}") from None


def _needed(ablation: Ablation, folder: epath.Path, members: list[Member]) -> list[str]:
    """The variants that runs are of, with the reference where costs or baselines are still to be compared with it."""
    names = {member.variant for member in members}
    planned = (budget.read(folder) or {"variants": {}})["variants"]
    matched = ablation.equal != "steps" and ablation.reference not in planned
    if matched or names & ablation.baselines.keys():
        names.add(ablation.reference)
    return [name for name in ablation.variants if name in names]


def _check_measured_alike(ablation: Ablation, measurement: Measurement, folder: epath.Path) -> None:
    """Raises ValueError for a finished run that was measured in another way than runs now are."""
    protocol = measurement.protocol(measurement.run, measurement.sample_count(), [0])
    now = protocol.record() | measurement.fingerprint
    for member in ablation.members():
        table = (runs.read(folder / str(member)) or {}).get("table", {})
        before = table.get("reference", {}) | table.get("protocol", {})
        for key in MEASURED_BY:
            if key in before and before[key] != now[key]:
                raise ValueError(
                    f"{folder / str(member)} was measured with {key} {before[key]!r}, and now it is "
                    f"{now[key]!r}: remove its {runs.FILE}, to measure it again, or give another workdir"
                )


def check_launch(ablation: Ablation, kind: str, folder: epath.Path, members: list[Member]) -> None:
    """Checks that runs can be launched by themselves.

    Args:
        ablation: the ablation.
        kind: of commands, as `--launch` has it.
        folder: of the ablation.
        members: the runs.

    Raises:
        ValueError: if times are to be equal and have not been measured.
    """
    planned = (budget.read(folder) or {"variants": {}})["variants"]
    missing = sorted({member.variant for member in members} - planned.keys() - ablation.baselines.keys())
    if ablation.equal == "time" and missing:
        raise ValueError(
            f"--launch is {kind!r}; equal is 'time', and how long a step of {missing[0]} takes is not in "
            f"{folder}/{workdir.PLAN}: give --plan first, on one of the machines, or --equal=flops"
        )


def tune(
    ablation: Ablation, planned: dict, folder: epath.Path, title: str, names: Sequence[str], stop: Stop
) -> tuple[Ablation, dict]:
    """Tries the learning rates of variants, as far as that has not been done; see `rates`.

    Args:
        ablation: the ablation.
        planned: its budget.
        folder: its folder.
        title: of its tables.
        names: the variants.
        stop: tells whether the process was asked to stop.

    Returns:
        The ablation with the rates that are best, and the budget, in which a variant that failed with all of them has a
        "failure".
    """
    sweep, place = rates.sweep(ablation, planned), rates.folder_of(folder)
    labels = {rates.label(name, rate) for name in names for rate in ablation.learning_rates}
    members = [member for member in sweep.members() if member.variant in labels]
    if members:
        count = len(ablation.learning_rates)
        print_once(f"learning rates: {count} of each of {len(members) // count} variants, in {place}")
        with user_errors():
            of_sweep = budget.make(sweep, place, [member.variant for member in members], print_once)
        run_all(sweep, of_sweep, place, members, stop)
        if jax.process_index() == 0:
            table.write(sweep, place, rates.TITLE.format(title))
    found = rates.chosen(ablation, folder)
    for name in names:
        if name in found:
            print_once(f"{name}: learning rate {found[name]:g}")
    failed = {
        name: {"failure": f"RuntimeError: every learning rate failed, see {place}"}
        for name in names
        if name not in found and "failure" not in planned["variants"][name]
    }
    return rates.tuned(ablation, found), planned | {"variants": planned["variants"] | failed}


def run_all(ablation: Ablation, planned: dict, folder: epath.Path, members: list[Member], stop: Stop) -> int:
    """Trains and measures what is not finished yet, and returns how many runs failed, which does not end the others."""
    began, failed = time.perf_counter(), 0
    results = {member: runs.read(folder / str(member)) for member in members}
    waiting = [member for member in members if lacking(ablation, member, results[member])]
    trained = [member for member in waiting if "table" in (results[member] or {})]  # of which more is to be measured
    spent = [result["seconds"] for result in results.values() if result and "seconds" in result]
    for member in waiting:
        done = len(members) - len(waiting) + waiting.index(member)
        to_train = [other for other in waiting if other not in trained]
        count = sum(other in to_train for other in waiting[waiting.index(member) :])
        left = time_left([planned["variants"].get(other.variant, {}) for other in to_train], spent, count)
        so_far, about = minutes(time.perf_counter() - began), planned["variants"].get(member.variant)
        work = f"{about.get('steps', 'no')} steps" if about and member not in trained else "measured alone"
        print_once(f"[{done + 1}/{len(members)}] {member}: {work}; {so_far} so far{left}")
        result = run_one(ablation, about, folder, member, stop)
        if "failure" in result:
            failed += 1
            continue
        for ema, of_ema in runs.tables(result, "").items():
            figures = ", ".join(f"{row['nfe']}: {row['frechet']:.4g}" for row in of_ema["rows"])
            print_once(f"{member}{f' ({ema})' if ema else ''}: frechet {figures}")
        if member not in trained:
            spent.append(result["seconds"])
    return failed


def lacking(ablation: Ablation, member: Member, result: Mapping[str, Any] | None) -> bool:
    """Whether some of a run's weights are still to be measured, or all of it to be done."""
    if member.variant in ablation.baselines or "table" not in (result or {}):
        return "table" not in (result or {})
    own, *_ = emas = ablation.emas_of(member.variant)
    return not set(emas) <= runs.tables(result, own).keys()


def time_left(waiting: Sequence[Mapping[str, Any]], spent: Sequence[float], count: int) -> str:
    """What to say of the time that is left, "" where nothing is known of it.

    Args:
        waiting: what the budget says of the variant of each run that was not finished at the start.
        spent: seconds of each run that is finished.
        count: how many runs are left.
    """
    if spent:
        return f", about {minutes(sum(spent) / len(spent) * count)} left"
    timed = sum(about.get("steps", 0) * about.get("step_seconds", 0.0) for about in waiting)
    return f", more than {minutes(timed)} left" if timed else ""  # the steps alone, where they have been timed


def run_one(ablation: Ablation, about: dict | None, folder: epath.Path, member: Member, stop: Stop) -> dict:
    """Trains and measures one run, and writes its result.

    Args:
        ablation: the ablation.
        about: its variant in the budget, None for a baseline.
        folder: of the ablation.
        member: the run.
        stop: tells whether the process was asked to stop.

    Returns:
        The result, {"failure": one line} if the run failed.

    Raises:
        SystemExit: if the process was asked to stop.
    """
    place = folder / str(member)
    with contextlib.ExitStack() as stack:
        with user_errors():
            stack.enter_context(lock.locked(place, jax.process_index() == 0, jax.process_count()))
        before = runs.read(place)
        if not lacking(ablation, member, before):  # another command has finished it meanwhile
            return before or {}
        try:
            if about is None:
                result = baselines.measure(ablation, member, folder)
            elif "failure" in about:
                raise RuntimeError(about["failure"])
            else:
                config = ablation.config(member.variant, member.seed, about["steps"])
                emas, measured = ablation.emas_of(member.variant), before if "table" in (before or {}) else None
                steps = ablation.sampler_steps
                result = runs.train_and_measure(config, place, member.seed, steps, stop, emas, measured)
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and error.code == RESTART:
                raise
            cause = error.__context__ if isinstance(error, SystemExit) and error.__context__ else error
            result = {"failure": f"{type(cause).__name__}: {' '.join(str(cause).split())}"}
            print(f"failed: {member}: {result['failure']}", file=sys.stderr, flush=True)
        if "failure" not in result or "table" not in (before or {}):  # what has been measured stays
            runs.write(place, result)
    jax.clear_caches()  # no two runs share a program
    return result


def print_once(line: str) -> None:
    """Prints a line, on the first process only."""
    if jax.process_index() == 0:
        print(line, flush=True)


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
