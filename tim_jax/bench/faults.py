"""Kills a run at random moments, starts it again each time, and compares it with an undisturbed one.

The run is `python -m tim_jax.train` on the digits with a tiny network, on the processor. A third of the kills happen
while a checkpoint is written, a third between checkpoints, and a third while the program starts. The checkpoint from
which the run goes on after every kill, and at the end the whole state, must be those of the undisturbed run, bit for
bit.
"""

import argparse
import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.system.progress import Bar
from tim_jax.training import checkpoints, checksums

COLUMNS = (
    ("kills", "{kills}"),
    ("while saving", "{during_save}"),
    ("while starting", "{during_start}"),
    ("recovered bit-equal", "{recovered}"),
    ("final state bit-equal", "{bit_equal}"),
    ("seconds", "{seconds:.0f}"),
)
TINY = {
    "model.width": "16", "model.depth": "1", "model.heads": "2", "model.bottleneck": "8", "model.encoder_depth": "1",
    "data.batch_size": "16", "training.sample_steps": "1", "training.sample_every": "0",
    "optimizer.warmup_steps": "0", "optimizer.schedule": "constant", "optimizer.decay_steps": "0",
}  # fmt: skip
EVERY = 4  # steps between checkpoints
MAX_CHECKPOINTS = 6  # from a start to its kill, about
FOREVER = 10**9  # steps of a run that is to be killed, so that it cannot end before
PATIENCE = 900.0  # seconds to wait for anything


class Trial:
    """A run in a folder of its own, which can be started again as often as it is killed.

    Attributes:
        workdir: its folder.
        log: file to which its output goes.
        process: that was started last.
    """

    process: subprocess.Popen
    started = False

    def __init__(self, root: pathlib.Path, name: str, steps: int, keep: int = 2):
        self.workdir, self.log = root / name, root / f"{name}.txt"
        settings = TINY | {
            "training.steps": steps,
            "checkpoint.every": EVERY,
            "checkpoint.keep": keep,
            "loader.directory": root / "data",
        }
        flags = [f"--config.{key}={value}" for key, value in settings.items()]
        self.command = [sys.executable, "-m", "tim_jax.train", "--config=digits", f"--workdir={self.workdir}", *flags]
        compiled = {"JAX_COMPILATION_CACHE_DIR": str(root / "compiled")}  # unless the environment names another folder
        self.environment = (
            compiled
            | os.environ
            | {
                "JAX_PLATFORMS": "cpu",
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
        )

    def start(self) -> None:
        """Starts the process."""
        self.began = time.monotonic()
        with self.log.open("a") as log:
            self.process = subprocess.Popen(self.command, env=self.environment, stdout=log, stderr=log)
        self.started = True

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Waits until something has happened. Raises RuntimeError if the process ends before, or takes too long."""
        while not happened():
            if self.process.poll() is not None or time.monotonic() - self.began > PATIENCE:
                self.end()
                raise RuntimeError(f"run ended with {self.process.wait()}: …{self.log.read_text()[-2000:]}")
            time.sleep(0.002)

    def stop_while(self, happening: Callable[[], bool], after: Callable[[], float]) -> None:
        """Halts the process while something happens, and tries again if that was over.

        Args:
            happening: whether it happens.
            after: seconds between seeing that it happens and halting the process.
        """
        while True:
            self.wait_until(happening)
            time.sleep(after())
            self.process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            if happening():
                return
            self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """Ends the process, whatever has happened, so that none is left behind."""
        if self.started:
            self.process.kill()
            self.process.wait()

    def kill(self) -> None:
        """Kills the process. Raises RuntimeError if it had ended before."""
        self.process.kill()
        if self.process.wait() != -9:
            raise RuntimeError(f"run ended with {self.process.returncode} before it was killed")

    def finish(self) -> None:
        """Waits for the end. Raises RuntimeError unless the exit code is 0."""
        if self.process.wait(PATIENCE) != 0:
            raise RuntimeError(f"run ended with {self.process.returncode}: …{self.log.read_text()[-2000:]}")

    def latest(self) -> int:
        """Returns the step of the latest checkpoint, or 0."""
        folder = self.workdir / "checkpoints"
        return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)

    def saving(self) -> bool:
        """Returns whether a checkpoint has been begun but is not complete with its manifest."""
        folder = self.workdir / "checkpoints"
        begun = any(not path.name.isdigit() and path.name[0].isdigit() for path in folder.glob("*"))
        latest = epath.Path(folder / str(self.latest()))
        return begun or (latest.exists() and not checksums.has_manifest(latest))


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
    abstract = build(load_config("digits", TINY), jax.devices()[:1]).trainer.abstract
    row = {"kills": args.kills, "during_save": 0, "during_start": 0}
    left = []  # (step, leaves) of the checkpoint to go on from after each kill, and of the end
    with contextlib.ExitStack() as stack:
        root = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bar = stack.enter_context(Bar(total=args.kills, unit="kill"))
        starting = interval = 0.0  # seconds to a start's first checkpoint, and from one to the next
        killed = Trial(root, "killed", FOREVER)
        stack.callback(killed.end)
        for i in range(args.kills):
            start_at = killed.latest()
            killed.start()
            kind = ("save", "step", "start")[i % 3]
            if kind == "start":
                time.sleep(rng.uniform(0.0, starting))
            else:
                first, target = start_at + EVERY, start_at + EVERY * rng.randint(2, MAX_CHECKPOINTS)
                killed.wait_until(lambda: killed.latest() >= first)  # noqa: B023
                starting = time.monotonic() - killed.began
                killed.wait_until(lambda: killed.latest() >= target)  # noqa: B023
                interval = (time.monotonic() - killed.began - starting) / (target - first) * EVERY
                if kind == "save":
                    killed.stop_while(killed.saving, lambda: rng.uniform(0.0, interval / 4))  # noqa: B023
                else:
                    time.sleep(rng.uniform(0.0, 2 * interval))
            killed.kill()
            row["during_save"] += killed.saving()
            row["during_start"] += killed.latest() == start_at
            left.append(state_leaves(killed.workdir, abstract))
            bar.update()
        # The number of steps is known only now: the run ends a few later, and so does one that nothing disturbs.
        steps = killed.latest() + EVERY
        killed, whole = Trial(root, "killed", steps), Trial(root, "whole", steps, keep=steps)
        for trial in (killed, whole):
            stack.callback(trial.end)
            trial.start()
            trial.finish()
        left.append(state_leaves(killed.workdir, abstract))
        same = [step == 0 or leaves == state_leaves(whole.workdir, abstract, step)[1] for step, leaves in left]
        row |= {"recovered": sum(same[:-1]), "bit_equal": same[-1] and left[-1][0] == steps}
    return [row | {"seconds": time.perf_counter() - began}]
