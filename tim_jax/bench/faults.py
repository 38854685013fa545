"""Kills a run at random moments, starts it again each time, and compares it with an undisturbed one.

The run trains on the digits with a tiny network, on the processor, and saves continuously (`checkpoint.every=auto`,
`checkpoint.max_share=1`). Its processes are those of `python -m tim_jax.train`, forked from one that has imported what
they need, and SIGKILL ends them. A third of the kills happen while a checkpoint is written, a third at any moment after
a first one, and a third while the program starts. After each kill the run must go on right after the step of the latest
good checkpoint; the loss and the norm of the gradient of every step, and the whole state at the end, must be those of
the undisturbed run, bit for bit.

The work that a kill loses is what was done since the state that the next start goes on from was reached: in steps, in
seconds, and in durations of the save that ended last before the kill.
"""

import argparse
import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import pathlib
import random
import runpy
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.system import jsonl
from tim_jax.system.progress import Bar
from tim_jax.training import checkpoints, checksums

COLUMNS = (
    ("kills", "{kills}"),
    ("while saving", "{during_save}"),
    ("while starting", "{during_start}"),
    ("recovered bit-equal", "{recovered}"),
    ("final state bit-equal", "{bit_equal}"),
    ("steps lost, median / worst", "{lost_steps[median]:g} / {lost_steps[worst]}"),
    ("saves lost, median / worst", "{lost_saves[median]:.2f} / {lost_saves[worst]:.2f}"),
    ("ms of a step", "{step_ms:.1f}"),
    ("s of a save", "{save_seconds:.2f}"),
    ("seconds", "{seconds:.0f}"),
)
TINY = {
    "model.width": "16", "model.depth": "1", "model.heads": "2", "model.bottleneck": "8", "model.encoder_depth": "1",
    "data.batch_size": "16", "training.sample_steps": "1", "training.sample_every": "0", "training.log_every": "1",
    "optimizer.warmup_steps": "0", "optimizer.schedule": "constant", "optimizer.decay_steps": "0",
}  # fmt: skip
FOREVER = 10**9  # steps of a run that is to be killed, so that it cannot end before
SAVES = 3  # durations of a save from a start's first checkpoint to its kill, at most
MORE = 4  # steps after the last one that was killed
PATIENCE = 3600.0  # seconds to wait for anything
COMPARED, SAVE = ("loss", "grad_norm"), "save_seconds"  # metrics
IMPORTED = ("input_pipeline", "measuring", "teachers", "training")  # rooms that tim_jax.train imports late


def train(log: str, arguments: list[str]) -> None:
    """What the process of a run does, which does not outlive the one that started it. log: File for its output."""
    starter: Any = multiprocessing.parent_process()
    threading.Thread(target=lambda: (starter.join(), os._exit(1)), daemon=True, name="orphan").start()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
    tqdm.set_lock(threading.RLock())  # its own is between processes, and what a kill leaves of it would be told
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    sys.argv[1:] = arguments
    runpy.run_module("tim_jax.train", run_name="__main__")


@dataclasses.dataclass(frozen=True)
class Kill:
    """What a kill has left.

    Attributes:
        at: When it was, in seconds since the epoch.
        made: The metrics of the steps that this start had made, by step.
        saved: Step that the next start goes on from; 0 for none.
        during_save: Whether a checkpoint was being written.
        save_seconds: Duration of the save that had ended last, in this start or before; None for none.
    """

    at: float
    made: dict[int, dict]
    saved: int
    during_save: bool
    save_seconds: float | None

    @property
    def lost(self) -> tuple[int, float]:
        """The work that it loses: (steps, seconds)."""
        return lost({step: line["time"] for step, line in self.made.items()}, self.saved, self.at)


class Trial:
    """A run in a folder of its own, which can be started again as often as it is killed.

    Attributes:
        workdir: its folder.
        log: file to which its output goes.
        process: that was started last.
        at: when it was started, in seconds since the epoch.
    """

    def __init__(self, root: pathlib.Path, name: str, steps: int, **checkpoint: Any):
        self.workdir, self.log = root / name, root / f"{name}.txt"
        settings = TINY | {"training.steps": steps, "loader.directory": root / "data"}
        if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
            settings["training.compilation_cache"] = root / "compiled"
        settings |= {f"checkpoint.{key}": value for key, value in checkpoint.items()}
        flags = [f"--config.{key}={value}" for key, value in settings.items()]
        self.arguments = ["--config=digits", f"--workdir={self.workdir}", *flags]
        self.process: Any = None

    def begin(self) -> None:
        """Starts the process."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([f"tim_jax.runs.{room}" for room in IMPORTED])
        self.began, self.at = time.monotonic(), time.time()
        self.process = context.Process(target=train, args=(str(self.log), self.arguments))
        self.process.start()

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Waits until something has happened. Raises RuntimeError if the process ends before, or takes too long."""
        while not happened():
            if not self.process.is_alive() or time.monotonic() - self.began > PATIENCE:
                raise RuntimeError(self._ended())
            time.sleep(0.005)

    def end(self) -> None:
        """Ends the process, whatever has happened, so that none is left behind."""
        if self.process is not None:
            self.process.kill()
            self.process.join()

    def kill(self) -> None:
        """Kills the process. Raises RuntimeError if it had ended before."""
        self.end()
        if self.process.exitcode != -9:
            raise RuntimeError(self._ended())

    def finish(self) -> None:
        """Waits for the end. Raises RuntimeError unless the exit code is 0."""
        self.process.join(PATIENCE)
        if self.process.exitcode != 0:
            raise RuntimeError(self._ended())

    def _ended(self) -> str:
        return f"run ended with {self.process.exitcode}: …{self.log.read_text()[-2000:]}"

    def steps(self, whole: bool) -> list[int]:
        """Returns the steps whose checkpoints have their manifests, or those whose have none yet."""
        found = []
        for path in (self.workdir / "checkpoints").glob("*"):
            with contextlib.suppress(FileNotFoundError):  # it has just been removed
                if path.name.isdigit() and checksums.has_manifest(epath.Path(path)) == whole:
                    found.append(int(path.name))
        return found

    def saving(self) -> bool:
        """Returns whether a checkpoint has been begun but is not complete with its manifest."""
        names = [path.name for path in (self.workdir / "checkpoints").glob("*")]
        return any(name.endswith(".orbax-checkpoint-tmp") for name in names) or bool(self.steps(whole=False))

    def to_go_on_from(self) -> int:
        """Returns the step that a start would go on from."""
        if not (self.workdir / "checkpoints").exists():
            return 0
        manager = checkpoints.open_manager(epath.Path(self.workdir), 1, read_only=True)
        step = checkpoints.latest_good(manager)[0]
        manager.close()
        return step or 0

    def made(self) -> dict[int, dict]:
        """Returns the lines of the metrics of the steps that this start has made."""
        made = {}
        path = self.workdir / "metrics.jsonl"
        for line in jsonl.objects(b"\n".join(reversed(path.read_bytes().split(b"\n")))) if path.exists() else ():
            if line is not None and line["time"] < self.at:  # of the start before, not taken back yet
                break
            if line is not None:
                made[line["step"]] = line
        return made


def lost(made: Mapping[int, float], saved: int, killed: float) -> tuple[int, float]:
    """Returns the work that a kill loses: (steps, seconds).

    Args:
        made: When each step of this start was done, in seconds.
        saved: Step that the next start goes on from.
        killed: When the process was killed.
    """
    if not made or max(made) <= saved:
        return 0, 0.0
    if saved in made:
        return max(made) - saved, killed - made[saved]
    first = min(made)
    step = (made[max(made)] - made[first]) / max(len(made) - 1, 1)  # the first step has no one before it
    return max(made) - saved, killed - made[first] + step


def state_leaves(workdir: pathlib.Path, abstract: Any, step: int | None = None) -> tuple[int, list[bytes]]:
    """Reads the state of a checkpoint.

    Args:
        workdir: of the run.
        abstract: abstract training state.
        step: of the checkpoint; by default that of the one from which a start would go on.

    Returns:
        (step, bytes of each leaf); (0, []) if there is no checkpoint.
    """
    if not (workdir / "checkpoints").exists():
        return 0, []
    manager = checkpoints.open_manager(epath.Path(workdir), 1, read_only=True)
    step = checkpoints.latest_good(manager)[0] if step is None else step
    state = checkpoints.restore(manager, abstract, step) if step else None
    manager.close()
    return step or 0, [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures one row. Raises ValueError for wrong arguments, RuntimeError if a run does not end as it should."""
    if args.kills < 1:
        raise ValueError(f"--kills is {args.kills}; it must be at least 1")
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        root = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bar = stack.enter_context(Bar(total=args.kills, unit="kill"))
        killed = Trial(root, "killed", FOREVER, every="auto", max_share=1.0)
        stack.callback(killed.end)
        kills = []
        for kill in killed_at_random(killed, args.kills, random.Random(args.seed)):
            kills.append(kill)
            bar.update()
        # The number of steps is known only now: the run ends a few later, and so does one that nothing disturbs.
        steps = max(step for kill in kills for step in (kill.saved, *kill.made)) + MORE
        ends = [Trial(root, name, steps, every=FOREVER) for name in ("killed", "whole")]
        for trial in ends:
            stack.callback(trial.end)
            trial.begin()
            trial.finish()
        last, undisturbed = (trial.made() for trial in ends)
        abstract = build(load_config("digits", TINY), jax.devices()[:1]).trainer.abstract
        states = [state_leaves(trial.workdir, abstract, steps)[1] for trial in ends]
    found = {"bit_equal": bool(states[0]) and states[0] == states[1], "seconds": time.perf_counter() - began}
    return [{"kills": args.kills, "recovered": recovered(kills, last, undisturbed)} | figures(kills) | found]


def killed_at_random(run: Trial, count: int, rng: random.Random) -> Iterator[Kill]:
    """Starts a run and kills it, so many times: in turn while it saves, at any moment after a save, while it starts."""
    starting = save = 0.0  # seconds to a start's first checkpoint, and those of a save
    saved = 0
    for i in range(count):
        run.begin()
        kind = ("save", "any", "start")[i % 3]
        if kind == "start":
            time.sleep(rng.uniform(0.0, starting))
        else:
            run.wait_until(lambda: max(run.steps(whole=True), default=0) > saved)  # noqa: B023
            starting = time.monotonic() - run.began
            time.sleep(rng.uniform(0.0, SAVES * save))
            if kind == "save":
                run.wait_until(run.saving)
                time.sleep(rng.uniform(0.0, save / 2))
        at = time.time()
        run.kill()
        made = run.made()
        save = next((line[SAVE] for _, line in sorted(made.items(), reverse=True) if SAVE in line), save)
        saved = run.to_go_on_from()
        yield Kill(at, made, saved, run.saving(), save or None)


def recovered(kills: Sequence[Kill], last: Mapping[int, dict], undisturbed: Mapping[int, dict]) -> int:
    """Returns after how many kills the run went on as if there had been none.

    Args:
        kills: In their order.
        last: The metrics of the steps that the start after the last kill has made.
        undisturbed: Those of all steps of a run without kills.
    """
    count, after = 0, last
    for kill in reversed(kills):
        same = all(line[name] == undisturbed[step][name] for step, line in after.items() for name in COMPARED)
        count += same and min(after) == kill.saved + 1
        after = kill.made or after  # a start that was killed before its first step has gone on from the same one
    return count


def figures(kills: Sequence[Kill]) -> dict[str, Any]:
    """Returns what the kills met, and the work that they lost: medians, the worst, and all in their order."""
    losses = [(*kill.lost, kill.save_seconds or float("nan")) for kill in kills]
    of_kills: dict[str, list[float]] = {
        "steps": [steps for steps, _, _ in losses],
        "seconds": [seconds for _, seconds, _ in losses],
        "saves": [seconds / save for _, seconds, save in losses],
    }
    starts = [sorted((step, line["time"]) for step, line in kill.made.items()) for kill in kills]
    steps = [after - before for made in starts for (_, before), (_, after) in itertools.pairwise(made)]
    return {
        "during_save": sum(kill.during_save for kill in kills),
        "during_start": sum(not kill.made for kill in kills),
        "step_ms": 1e3 * statistics.median(steps) if steps else float("nan"),
        "save_seconds": statistics.median(save for _, _, save in losses),
        **{
            f"lost_{name}": {"median": statistics.median(values), "worst": max(values), "all": values}
            for name, values in of_kills.items()
        },
    }
