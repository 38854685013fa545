"""What a run survives: it is killed at random moments, started again each time, and compared with an undisturbed one.

The run is `python -m tim_jax.train` on the digits with a tiny network, on the processor. A third of the kills comes
while a checkpoint is written, a third between checkpoints, a third while the program starts. After every kill the
checkpoint that the next start goes on from, and at the end the whole state, must be that of the undisturbed run, bit
for bit.
"""

import argparse
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from tim_jax import config as configuration
from tim_jax.command_line import load_config
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
    "data.batch_size": "16", "optimizer.warmup_steps": "0", "training.sample_steps": "1", "training.sample_every": "0",
}  # fmt: skip
EVERY = 4  # steps between checkpoints
STEPS = 24  # per kill
PATIENCE = 900.0  # seconds to wait for anything


class Trial:
    """A run in a folder of its own, started again as often as it is killed."""

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
        self.environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
            "JAX_COMPILATION_CACHE_DIR": str(root / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def start(self) -> None:
        self.began = time.monotonic()
        with self.log.open("a") as log:
            self.process = subprocess.Popen(self.command, env=self.environment, stdout=log, stderr=log)

    def wait_until(self, happened) -> None:
        """Raises RuntimeError if the process ends before, or does not get there."""
        while not happened():
            if self.process.poll() is not None or time.monotonic() - self.began > PATIENCE:
                self.process.kill()
                raise RuntimeError(f"run ended with {self.process.wait()}: …{self.log.read_text()[-2000:]}")
            time.sleep(0.002)

    def kill(self) -> None:
        self.process.kill()
        if self.process.wait() != -9:
            raise RuntimeError(f"run ended with {self.process.returncode} before it was killed")

    def finish(self) -> None:
        """Waits for the end. Raises RuntimeError unless it is the right one."""
        if self.process.wait(PATIENCE) != 0:
            raise RuntimeError(f"run ended with {self.process.returncode}: …{self.log.read_text()[-2000:]}")

    def latest(self) -> int:
        """The latest checkpoint's step, or 0."""
        folder = self.workdir / "checkpoints"
        return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)

    def saving(self) -> bool:
        """Whether a checkpoint is begun and not complete with its manifest."""
        folder = self.workdir / "checkpoints"
        begun = any(not path.name.isdigit() and path.name[0].isdigit() for path in folder.glob("*"))
        latest = epath.Path(folder / str(self.latest()))
        return begun or (latest.exists() and not checksums.has_manifest(latest))


def state_leaves(workdir: pathlib.Path, abstract: Any, step: int | None = None) -> tuple[int, list[bytes]]:
    """(step, its state's leaves) of a checkpoint; by default of the one that a start would go on from, 0 for none."""
    if not (workdir / "checkpoints").exists():
        return 0, []
    manager = checkpoints.open_manager(epath.Path(workdir), 1, 1, read_only=True)
    step = checkpoints.latest_good(manager)[0] if step is None else step
    state = checkpoints.restore(manager, abstract, step) if step else None
    manager.close()
    return step or 0, [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default: %(default)s")


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row. Raises ValueError for arguments that cannot be, RuntimeError if a run does not end as it should."""
    if args.kills < 1:
        raise ValueError(f"--kills is {args.kills}; it must be at least 1")
    began, rng, steps = time.perf_counter(), random.Random(args.seed), STEPS * (args.kills + 1)
    abstract = configuration.build(load_config("digits", TINY), jax.devices()[:1]).trainer.abstract
    row = {"kills": args.kills, "during_save": 0, "during_start": 0, "recovered": 0}
    with tempfile.TemporaryDirectory() as folder, tqdm(total=args.kills, unit="kill") as bar:
        root = pathlib.Path(folder)
        whole = Trial(root, "whole", steps, keep=steps)
        whole.start()
        whole.wait_until(lambda: whole.latest() > 0)
        first = time.monotonic()
        whole.wait_until(lambda: whole.latest() == steps)
        interval = (time.monotonic() - first) / (steps / EVERY - 1)
        whole.finish()

        def as_undisturbed() -> bool:
            step, leaves = state_leaves(killed.workdir, abstract)
            return not step or leaves == state_leaves(whole.workdir, abstract, step)[1]

        killed = Trial(root, "killed", steps)
        starting = 0.0  # seconds to the first checkpoint after a start, with everything compiled before
        for i in range(args.kills):
            start_at = killed.latest()
            killed.start()
            kind = ("save", "step", "start")[i % 3]
            if kind == "start":
                time.sleep(rng.uniform(0.0, starting))
            else:
                target = STEPS * i + rng.randrange(STEPS)
                killed.wait_until(lambda: killed.latest() > start_at)  # noqa: B023
                starting = time.monotonic() - killed.began
                killed.wait_until(lambda: killed.latest() >= target)  # noqa: B023
                if kind == "save":
                    killed.wait_until(killed.saving)
                time.sleep(rng.uniform(0.0, interval / 4 if kind == "save" else 2 * interval))
            killed.kill()
            row["during_save"] += killed.saving()
            row["during_start"] += killed.latest() == start_at
            row["recovered"] += as_undisturbed()
            bar.update()
        killed.start()
        killed.finish()
        row["bit_equal"] = state_leaves(killed.workdir, abstract)[0] == steps and as_undisturbed()
    return [row | {"seconds": time.perf_counter() - began}]
