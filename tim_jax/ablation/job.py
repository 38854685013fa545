"""The job of python -m tim_jax.ablate: which runs there are, whether they can be made, and all of them one by one."""

import contextlib
import difflib
import sys
import time

import jax
from etils import epath

from tim_jax.ablation import baselines, budget, runs
from tim_jax.ablation.settings import Ablation, Member
from tim_jax.config.build import build
from tim_jax.runs.input_pipeline import open_pipeline
from tim_jax.runs.measuring import open_measurement
from tim_jax.runs.start import first_state
from tim_jax.runs.teachers import with_teachers
from tim_jax.system import lock
from tim_jax.system.exit_codes import RESTART
from tim_jax.system.user_errors import user_errors
from tim_jax.training import warm_start
from tim_jax.training.preemption import Stop


def chosen(ablation: Ablation, only: str) -> list[Member]:
    """Returns the runs that `--only` names, of variants and baselines; all for an empty text. Raises ValueError."""
    members = ablation.members()
    if not only:
        return members
    by_name = {str(member): [member] for member in members}
    names = (*ablation.variants, *ablation.baselines)
    by_name |= {name: [member for member in members if member.variant == name] for name in names}
    for name in only.split(","):
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=1, cutoff=0.0)[0]
            raise ValueError(f"--only has {name!r}: no such variant or run; did you mean {near}?")
    picked = {member for name in only.split(",") for member in by_name[name]}
    return [member for member in members if member in picked]


def validate(ablation: Ablation, folder: epath.Path) -> None:
    """Checks all variants before anything is trained.

    Raises:
        ValueError: naming the variant, if it cannot be built, if its data or the weights that it starts from are
            missing, or if what was begun of it in the folder has learnt from another teacher.
    """
    opened = []
    for name in ablation.variants:
        try:
            run = with_teachers(build(ablation.config(name)))
            runs.network_evaluations(run, ablation.sampler_steps)
            places = [folder / str(Member(name, seed)) for seed in range(ablation.seeds)]
            begun = [place for place in places if warm_start.latest(place)]
            for place in begun + [place for place in places if place not in begun][:1]:
                first_state(run, place)
            read = {part: run.config[part].to_json() for part in ("data", "loader", "codecs", "evaluation", "model")}
            if read not in opened:
                open_pipeline(run)
                open_measurement(run)
                opened.append(read)
        except ValueError as error:
            raise ValueError(f"variant {name!r}: {error}") from None


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
            f"{folder}/{budget.FILE}: give --plan first, on one of the machines, or --equal=flops"
        )


def run_all(ablation: Ablation, planned: dict, folder: epath.Path, members: list[Member], stop: Stop) -> int:
    """Trains and measures what is not finished yet, and returns how many runs failed, which does not end the others."""
    began, failed = time.perf_counter(), 0
    results = {member: runs.read(folder / str(member)) for member in members}
    waiting = [member for member in members if "table" not in (results[member] or {})]
    spent = [result["seconds"] for result in results.values() if result and "seconds" in result]
    for member in waiting:
        done = len(members) - len(waiting) + waiting.index(member)
        if spent:
            left = f"about {minutes(sum(spent) / len(spent) * (len(members) - done))}"
        else:  # the steps alone, where they have been timed
            steps = [planned["variants"].get(other.variant, {}) for other in waiting]
            left = f"more than {minutes(sum(of.get('steps', 0) * of.get('step_seconds', 0.0) for of in steps))}"
        so_far, about = minutes(time.perf_counter() - began), planned["variants"].get(member.variant)
        work = f"{about.get('steps', 'no')} steps" if about else "measured alone"
        print_once(f"[{done + 1}/{len(members)}] {member}: {work}; {so_far} so far, {left} left")
        result = run_one(ablation, about, folder, member, stop)
        if "failure" in result:
            failed += 1
            continue
        figures = ", ".join(f"{row['nfe']}: {row['frechet']:.4g}" for row in result["table"]["rows"])
        print_once(f"{member}: frechet {figures}")
        spent.append(result["seconds"])
    return failed


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
        try:
            if about is None:
                result = baselines.measure(ablation, member, folder)
            elif "failure" in about:
                raise RuntimeError(about["failure"])
            else:
                config = ablation.config(member.variant, member.seed, about["steps"])
                result = runs.train_and_measure(config, place, member.seed, ablation.sampler_steps, stop)
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and error.code == RESTART:
                raise
            cause = error.__context__ if isinstance(error, SystemExit) and error.__context__ else error
            result = {"failure": f"{type(cause).__name__}: {' '.join(str(cause).split())}"}
            print(f"failed: {member}: {result['failure']}", file=sys.stderr, flush=True)
        runs.write(place, result)
    jax.clear_caches()  # no two runs share a program
    return result


def print_once(line: str) -> None:
    """Prints a line, on the first process only."""
    if jax.process_index() == 0:
        print(line, flush=True)


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
