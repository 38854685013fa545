"""Watches what a long run holds: memory, file descriptors, threads and processes, from its first steps to its last.

The run is `python -m tim_jax.train` on the digits with a tiny network, on the processor. At regular intervals it
saves, draws samples and evaluates; what Linux says of the process and of its data workers is read all the while.
Ctrl-C ends it before its last step, with the figures of the steps until then.
"""

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from tim_jax.system.progress import Bar

COLUMNS = (
    ("", "{name}"),
    ("at first", "{start:.1f}"),
    ("at the end", "{end:.1f}"),
    ("most", "{most:.1f}"),
    ("per 1,000 steps", "{slope:+.3f} ± {uncertainty:.3f}"),
    ("steps", "{steps}"),
    ("evaluations", "{evaluations}"),
    ("seconds", "{seconds:.0f}"),
)
NAMES = ("resident MiB", "of it anonymous MiB", "file descriptors", "threads", "processes")
SECONDS = 1.0  # from one look to the next
WARMING = 0.1  # share of the steps, in which programs are compiled and pools fill, that is left out
BLOCKS = 20  # equal parts of the steps, whose means the line goes through: looks beside each other are not independent
TAIL = 1 << 16  # bytes at the end of metrics.jsonl that are looked at
SAMPLES = 64  # of an evaluation


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures a row for each quantity. Raises ValueError for wrong arguments, RuntimeError if the run fails."""
    for name, least in (("steps", 1000), ("evaluations", 1), ("workers", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least {least}")
    if args.evaluations > args.steps:
        raise ValueError(f"--evaluations is {args.evaluations}; it must be at most --steps, {args.steps}")
    if not pathlib.Path("/proc/self/status").exists():
        raise ValueError("endurance: it must run on Linux, whose /proc says what a process holds")
    began, looks, every = time.perf_counter(), [], args.steps // args.evaluations
    with (
        tempfile.TemporaryDirectory() as root,
        Bar(total=args.steps, unit="step") as bar,
        contextlib.suppress(KeyboardInterrupt),
        contextlib.closing(watched(pathlib.Path(root), args.steps, every, args.workers)) as watching,
    ):
        for look in watching:
            looks.append(look)
            bar.update(int(look[0]) - bar.n)
    steps = int(looks[-1][0]) if looks else 0
    about = {"steps": steps, "evaluations": steps // every, "seconds": time.perf_counter() - began}
    return [row | about for row in rows(looks)]


def watched(root: pathlib.Path, steps: int, every: int, workers: int) -> Generator[tuple[float, ...], None, None]:
    """Trains in a process of its own; yields (step, values in the order of NAMES) until it ends.

    Raises:
        RuntimeError: If its exit code is not 0.
    """
    from tim_jax.bench.faults import TINY  # which needs the packages of configurations

    settings = TINY | {
        "training.steps": steps,
        "training.log_every": max(1, min(50, every // 2)),
        "training.sample_every": every,
        "checkpoint.every": every,
        "evaluation.periodic.every": every,
        "evaluation.periodic.steps": 1,
        "evaluation.periodic.num_samples": SAMPLES,
        "loader.directory": root / "data",
        "loader.workers": workers,
    }
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "tim_jax.train", "--config=digits", f"--workdir={root / 'run'}", *flags]
    log = root / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdout=output, stderr=output)
    try:
        while process.poll() is None:
            if step := last_step(root / "run" / "metrics.jsonl"):
                yield step, *holdings(process.pid)
            time.sleep(SECONDS)
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise RuntimeError(f"run ended with {process.returncode}: …{log.read_text()[-2000:]}")


def last_step(path: pathlib.Path) -> int:
    """Returns the step of the last whole line of a run's metrics, 0 where there is none yet."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - TAIL, 0))
        lines = file.read().split(b"\n")
    return json.loads(lines[-2])["step"] if len(lines) > 1 else 0


def holdings(process: int) -> tuple[float, ...]:
    """Returns what a process and its descendants hold, in the order of NAMES; or nothing of those that end."""
    found = np.zeros(len(NAMES))
    waiting = [process]
    while waiting:
        folder = pathlib.Path("/proc") / str(waiting.pop())
        try:
            status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
            memory = [int(status[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon")]
            found += (*memory, len(list((folder / "fd").iterdir())), int(status["Threads"]), 1)
            for children in (folder / "task").glob("*/children"):
                waiting += map(int, children.read_text().split())
        except (OSError, KeyError):  # a process that has ended has no memory
            continue
    return tuple(found)


def rows(looks: Sequence[tuple[float, ...]]) -> list[dict[str, Any]]:
    """Returns a row for each quantity: its mean in the first and the last tenth after warming up, most, and its slope.

    Args:
        looks: (step, values in the order of NAMES).

    Raises:
        RuntimeError: If there are too few looks to tell.
    """
    table = np.array(looks, np.float64).reshape(-1, 1 + len(NAMES))
    steps = table[-1, 0] if len(table) else 0
    table = table[table[:, 0] >= WARMING * steps]
    blocks = np.linspace(WARMING * steps, steps, BLOCKS + 1)
    numbers = np.clip(np.searchsorted(blocks, table[:, 0], side="right") - 1, 0, BLOCKS - 1)
    means = np.array([table[numbers == block].mean(axis=0) for block in np.unique(numbers)])
    if len(means) < 4:
        raise RuntimeError(f"the run took too little time to be watched: {len(table)} looks, {SECONDS:g} s apart")
    found = []
    for column, name in enumerate(NAMES, 1):
        (slope, _), covariance = np.polyfit(means[:, 0] / 1000, means[:, column], 1, cov=True)
        ends = len(means) // 10 or 1
        found.append(
            {
                "name": name,
                "start": means[:ends, column].mean(),
                "end": means[-ends:, column].mean(),
                "most": table[:, column].max(),
                "slope": slope,
                "uncertainty": covariance[0, 0] ** 0.5,
                "means": means[:, (0, column)].tolist(),
            }
        )
    return found
