"""Kills a run at random moments, starts it again each time, and compares it with an undisturbed one.

The run trains on the digits with a tiny network, on the processor, and saves continuously (`checkpoint.every=auto`).
Its processes are those of `python -m tim_jax.train`, forked from one that has imported what they need, and SIGKILL ends
them. A third of the kills happen once a checkpoint is being written, a third at any moment after a first one, and a
third while the program starts. The loss and the norm of the gradient of every step, and the whole state at the end,
must be those of the undisturbed run, bit for bit.

The work that a kill loses is what was done since the state that the next start goes on from was reached: in steps, in
seconds, and in durations of a save, their median over the run.
"""

import argparse
import contextlib
import multiprocessing
import os
import pathlib
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

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
    ("steps lost, median and worst", "{lost_steps[median]:g}, {lost_steps[worst]}"),
    ("saves lost, median and worst", "{lost_saves[median]:.2f}, {lost_saves[worst]:.2f}"),
    ("ms of a step", "{step_ms:.1f}"),
    ("s of a save", "{save_seconds:.2f}"),
    ("seconds", "{seconds:.0f}"),
)
TINY = {
    "model.width": "16", "model.depth": "1", "model.heads": "2", "model.bottleneck": "8", "model.encoder_depth": "1",
    "data.batch_size": "16", "training.sample_steps": "1", "training.sample_every": "0", "training.log_every": "1",
    "optimizer.warmup_steps": "0", "optimizer.schedule": "constant", "optimizer.decay_steps": "0",
}  # fmt: skip
FOREVER = (
    10**9
)  # steps of a run that is to be killed, so that it cannot end before, and from one of its saves to the next
SAVES = 4  # durations of a save from a start's first checkpoint to its kill, at most
MORE = 4  # steps after the last kill
PATIENCE = 3600.0  # seconds to wait for anything
COMPARED = ("loss", "grad_norm")
IMPORTED = ("input_pipeline", "measuring", "teachers", "training")  # rooms that tim_jax.train imports late


def train(log: str, arguments: list[str]) -> None:
    """What the process of a run does. log: File that its output is added to."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    from tim_jax import train as command

    command.main(arguments)


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
        settings |= {"training.compilation_cache": root / "compiled"}
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
            time.sleep(0.002)

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

    def latest(self) -> int:
        """Returns the step of the latest checkpoint, or 0."""
        folder = self.workdir / "checkpoints"
        return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)

    def saving(self) -> bool:
        """Returns whether a checkpoint has been begun but is not complete with its manifest."""
        folder = self.workdir / "checkpoints"
        begun = any(not path.name.isdigit() and path.name[0].isdigit() for path in folder.glob("*"))
        latest = epath.Path(folder / str(self.latest()))
        with contextlib.suppress(FileNotFoundError):  # it has just been removed
            return begun or (latest.exists() and not checksums.has_manifest(latest))
        return True

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
    began, rng = time.perf_counter(), random.Random(args.seed)
    row: dict[str, Any] = {"kills": args.kills, "during_save": 0, "during_start": 0}
    starts: list[dict[int, dict]] = []  # the lines of the steps that each start has made
    losses = []
    with contextlib.ExitStack() as stack:
        root = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bar = stack.enter_context(Bar(total=args.kills, unit="kill"))
        killed = Trial(root, "killed", FOREVER, every="auto", max_share=1.0)
        stack.callback(killed.end)
        starting = save = 0.0  # seconds to a start's first checkpoint, and those of a save
        saved = 0
        for i in range(args.kills):
            killed.begin()
            kind = ("save", "step", "start")[i % 3]
            if kind == "start":
                time.sleep(rng.uniform(0.0, starting))
            else:
                killed.wait_until(lambda: killed.latest() > saved)  # noqa: B023
                starting = time.monotonic() - killed.began
                time.sleep(rng.uniform(0.0, SAVES * save))
                if kind == "save":
                    killed.wait_until(killed.saving)
                    time.sleep(rng.uniform(0.0, save / 2))
            at = time.time()
            killed.kill()
            made, saved = killed.made(), killed.to_go_on_from()
            starts.append(made)
            save = _median_save([made]) or save
            row["during_save"] += killed.saving()
            row["during_start"] += not made
            losses.append(lost({step: line["time"] for step, line in made.items()}, saved, at))
            bar.update()
        # The number of steps is known only now: the run ends a few later, and so does one that nothing disturbs.
        steps = saved + MORE
        ends = Trial(root, "killed", steps, every=FOREVER), Trial(root, "whole", steps, every=FOREVER)
        for trial in ends:
            stack.callback(trial.end)
            trial.begin()
            trial.finish()
        starts.append(ends[0].made())
        undisturbed = ends[1].made()
        abstract = build(load_config("digits", TINY), jax.devices()[:1]).trainer.abstract
        states = [state_leaves(trial.workdir, abstract, steps)[1] for trial in ends]
    row["recovered"] = sum(
        all(line[name] == undisturbed[step][name] for step, line in made.items() if step <= steps for name in COMPARED)
        for made in starts[1:]
    )
    row["bit_equal"] = bool(states[0]) and states[0] == states[1]
    pairs = [(line, made[step + 1]) for made in starts for step, line in made.items() if step + 1 in made]
    unit = row["save_seconds"] = _median_save(starts) or float("nan")
    row["step_ms"] = 1e3 * statistics.median(after["time"] - before["time"] for before, after in pairs)
    of_kills: dict[str, list[float]] = {
        "steps": [steps for steps, _ in losses],
        "seconds": [seconds for _, seconds in losses],
        "saves": [seconds / unit for _, seconds in losses],
    }
    for name, values in of_kills.items():
        row[f"lost_{name}"] = {"median": statistics.median(values), "worst": max(values), "all": values}
    return [row | {"seconds": time.perf_counter() - began}]


def _median_save(starts: list[dict[int, dict]]) -> float | None:
    """The median duration of the saves of some starts, in seconds, or None where they made none."""
    found = [set(line["save_seconds"] for line in made.values() if "save_seconds" in line) for made in starts]
    each = [seconds for seconds_of in found for seconds in seconds_of]
    return statistics.median(each) if each else None
