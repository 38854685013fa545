"""How many steps each variant takes, so that all cost the same; written to plan.json and read again by later starts.

The cost of a step is measured against the reference's, the two called in turn in one process: whatever else the machine
does falls on both, and the step counts are those of a quiet machine.
"""

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils

from tim_jax.ablation.settings import Ablation
from tim_jax.config import keys, loading
from tim_jax.config.batches import batch_spec, made_up_batch
from tim_jax.config.build import build
from tim_jax.config.objective import resolved
from tim_jax.config.run import Run
from tim_jax.runs.teachers import with_teachers
from tim_jax.system import files, lock, timing
from tim_jax.training import sharding

FILE = "plan.json"
STEPS = 4  # of a call that is timed
REPEATS = 15


def read(folder: epath.Path) -> dict[str, Any] | None:
    """What was planned in an ablation's folder, or None."""
    path = folder / FILE
    return json.loads(path.read_text()) if path.exists() else None


def check(ablation: Ablation, before: Mapping[str, Any] | None, folder: epath.Path) -> None:
    """Raises ValueError if what was planned in a folder is another ablation than this one.

    Variants may come and go, but one that stays must be what it was.
    """
    if before is None:
        return
    for field in ("equal", "reference"):
        if getattr(ablation, field) != before[field]:
            raise ValueError(
                f"{field} is {getattr(ablation, field)!r}, but {folder} was planned with {before[field]!r}: "
                "give that or another workdir"
            )
    default = json.loads(json.dumps(keys.flatten(resolved(loading.load("base").get_config()))))
    for name in ablation.variants:
        if name not in before["variants"]:
            continue
        then, now = default | before["variants"][name]["definition"], ablation.definition(name)
        for key, value in now.items():
            if then.get(key) != value:
                raise ValueError(
                    f"variant {name!r}: {key} is {value!r}, but {folder} was planned with {then.get(key)!r}: "
                    "give that value, another name or another workdir"
                )


def make(ablation: Ablation, folder: epath.Path, variants: list[str], say: Callable[[str], None]) -> dict[str, Any]:
    """The plan, with these variants added to what is there. To be called by all processes.

    {"equal", "reference", "machine", "variants": {name: {"steps", "cost": of a step, the reference's being 1,
    "step_seconds", "spread", "definition"}}}; "failure" in place of "steps" for one whose step cannot be made. A
    failure is not written, so that it is tried again.
    """
    # What is counted comes out alike everywhere, but times must not be measured twice.
    alone = lock.locked(folder, jax.process_index() == 0, jax.process_count()) if ablation.equal == "time" else None
    with alone or contextlib.nullcontext():
        found = read(folder) or {"equal": ablation.equal, "reference": ablation.reference, "variants": {}}
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("the plan is read")
        missing = [name for name in dict.fromkeys([ablation.reference, *variants]) if name not in found["variants"]]
        if not missing:
            return found
        costs = {"time": by_time, "flops": by_flops, "steps": by_steps}[ablation.equal](ablation, missing, say)
        failed = {name: cost for name, cost in costs.items() if "failure" in cost}
        found["machine"] = timing.machine()
        found["variants"] |= {
            name: {"steps": steps_of(ablation, name, cost["cost"]), **cost, "definition": ablation.definition(name)}
            for name, cost in costs.items()
            if name not in failed
        }
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            files.replace(folder / FILE, (json.dumps(found, indent=2) + "\n").encode())
        if jax.process_count() > 1:  # each has measured times of its own
            multihost_utils.sync_global_devices("the plan is written")
            found = read(folder)
        return found | {"variants": failed | found["variants"]}


def steps_of(ablation: Ablation, name: str, cost: float) -> int:
    """Steps of a variant whose step costs so many of the reference's."""
    if ablation.equal == "steps":
        return ablation.config(name).training.steps
    return max(1, round(ablation.base.training.steps / cost))


def by_steps(ablation: Ablation, missing: list[str], say: Callable[[str], None]) -> dict[str, dict]:
    """Every step costs the same."""
    return {name: {"cost": 1.0} for name in missing}


def by_flops(ablation: Ablation, missing: list[str], say: Callable[[str], None]) -> dict[str, dict]:
    """A step costs the model's operations in it."""

    @functools.cache
    def flops(name: str) -> int:
        run = with_teachers(build(ablation.config(name)))
        shape = run.image_shape[:2]
        spec = batch_spec(run.config, run.inputs.batch_size_of(shape), shape)
        batch = sharding.abstract_batch(run.mesh, spec)
        return run.trainer.model_flops(batch, run.trainer.trace(batch))

    reference, costs = flops(ablation.reference), {}
    for name in missing:
        say(f"counting operations of {name}")
        costs[name] = _or_failure(lambda name: {"cost": flops(name) / reference, "step_flops": flops(name)}, name)
    return costs


def by_time(ablation: Ablation, missing: list[str], say: Callable[[str], None]) -> dict[str, dict]:
    """A step costs its median seconds, measured by turns with the reference's; two states are held at a time."""
    say(f"compiling {ablation.reference}, to which the others are compared")
    reference, costs = stepper(with_teachers(build(ablation.config(ablation.reference)))), {}
    for i, name in enumerate(missing):
        if name == ablation.reference:
            seconds = timing.interleaved({name: reference}, REPEATS)[name]
            costs[name] = {"cost": 1.0, "step_seconds": seconds.seconds / STEPS, "spread": seconds.spread / STEPS}
        else:
            say(f"calibrating {name} [{i + 1}/{len(missing)}]")
            costs[name] = _or_failure(_time_cost, ablation, name, reference)
    return costs


def _time_cost(ablation: Ablation, name: str, reference: Callable[[], Any]) -> dict:
    calls = {"reference": reference, "own": stepper(with_teachers(build(ablation.config(name))))}
    found = timing.interleaved(calls, REPEATS)
    own, reference = found["own"], found["reference"]
    return {
        "cost": own.seconds / reference.seconds,
        "step_seconds": own.seconds / STEPS,
        "spread": own.spread / STEPS,
        "reference_step_seconds": reference.seconds / STEPS,
    }


def stepper(run: Run) -> Callable[[], Any]:
    """A function that trains for STEPS steps on made-up rows, and goes on from there when called again."""
    rows = run.inputs.batch_size_of(run.image_shape[:2])
    here = rows * len(sharding.shards_here(run.mesh)) // sharding.batch_shards(run.mesh)
    batch = sharding.put_batch(run.mesh, made_up_batch(run.config, here))
    state = run.trainer.create()

    def train() -> Any:
        nonlocal state
        for _ in range(STEPS):
            state, metrics = run.trainer(state, batch)
        return state.step, metrics

    return train


def _or_failure(cost: Callable[..., dict], *args: Any) -> dict:
    try:
        return cost(*args)
    except Exception as error:  # one variant's failure is not the others'
        print(f"failed: {error}", file=sys.stderr, flush=True)
        return {"failure": f"{type(error).__name__}: {' '.join(str(error).split())}"}
