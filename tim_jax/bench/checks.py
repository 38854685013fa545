"""What the checks for silent corruption cost a run, at its settings, and what they would where devices have replicas.

Time is that of the processor on CPUs, which other programs do not lengthen, and that of a clock elsewhere.
"""

import argparse
import time
from typing import Any

import jax

from tim_jax.config.batches import made_up_batch
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.config.run import Run
from tim_jax.system import timing
from tim_jax.training import sharding
from tim_jax.training.array_checksums import checksums
from tim_jax.training.recomputation import Recomputation

COLUMNS = (
    ("configuration", "{config}"),
    ("devices", "{devices}"),
    ("step, ms", "{step_ms:.1f}"),
    ("state, ms", "{state_ms:.2f}"),
    ("batch, ms", "{batch_ms:.2f}"),
    ("step made twice, ms", "{twice_ms:.1f}"),
    ("of a run's time", "{share:.2%}"),
    ("with replicas", "{share_with_replicas:.2%}"),
)


def measure(built: Run, repeats: int) -> dict[str, Any]:
    """Measures what the checks of a run take, and their share of its time."""
    trainer = built.trainer
    batch = sharding.put_batch(built.mesh, made_up_batch(built.config, built.data.batch_size))
    sent, again = checksums(batch), Recomputation(trainer)
    state = [trainer.create()]

    def step() -> Any:
        state[0], *others = trainer.detailed(state[0], batch)
        return others

    def twice() -> Any:
        (state[0], *others), _ = again.step(1, state[0], batch)
        return others

    calls = {
        "step": step,
        "state": lambda: checksums(state[0]).differ,
        "batch": lambda: (checksums(batch).table, checksums(batch, sent).differ),
        "twice": twice,
    }
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    found = {name: each.seconds for name, each in timing.interleaved(calls, repeats, clock=clock).items()}
    settings, always, of_replicas = built.training, 0.0, 0.0
    if settings.compare_every:
        always, of_replicas = found["batch"], found["state"] / settings.compare_every
    if settings.recompute_every:
        always += (found["twice"] - found["step"]) / settings.recompute_every
    with_replicas = always + of_replicas
    share, share_with_replicas = (each / (found["step"] + each) for each in (always, with_replicas))
    return {f"{name}_ms": 1e3 * seconds for name, seconds in found.items()} | {
        "share": share_with_replicas if built.mesh.size > 1 else share, "share_with_replicas": share_with_replicas,
    }  # fmt: skip


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures a row for a configuration. Raises ValueError for wrong arguments."""
    if args.repeats < 1:
        raise ValueError(f"--repeats is {args.repeats}; it must be at least 1")
    built = build(load_config(args.config, {}))
    return [{"config": args.config, "devices": built.mesh.size} | measure(built, args.repeats)]
