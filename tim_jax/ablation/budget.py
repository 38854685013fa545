"""The budget of an ablation: how many steps each variant takes, so that all cost the same.

It is written to plan.json in the ablation's folder and read again by later starts. One command at a time adds to it,
the others wait. The cost of a step is measured against the reference's, with the two called in turn in one process:
whatever else the machine does falls on both, so that the step counts are those of a quiet machine.
"""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from tim_jax.ablation.settings import Ablation
from tim_jax.config import keys, loading, renames
from tim_jax.config.batches import batch_spec, made_up_batch
from tim_jax.config.build import build
from tim_jax.config.objective import resolved
from tim_jax.config.run import Run
from tim_jax.runs.teachers import with_teachers
from tim_jax.runs.workdir import CONFIG, PLAN
from tim_jax.system import files, jsonl, lock, timing
from tim_jax.training import sharding

STEPS = 4  # training steps in a call that is timed
REPEATS = 15  # such calls of each variant


Progress = Callable[[str], None]


def read(folder: epath.Path) -> dict[str, Any] | None:
    """Reads the budget in an ablation's folder; None if there is none. See `make` for what it holds.

    Raises ValueError for a folder that is the workdir of a run.
    """
    path = folder / PLAN
    if path.exists():
        return jsonl.read_object(path)
    if (folder / CONFIG).exists():
        raise ValueError(f"--workdir is {str(folder)!r}; it must be a folder of its own, and holds a run")
    return None


def check(ablation: Ablation, before: Mapping[str, Any] | None, folder: epath.Path) -> None:
    """Checks that a folder belongs to this ablation. Variants may come and go, but one that stays must be what it was.

    Args:
        ablation: the ablation.
        before: the budget in the folder (see `read`), or None.
        folder: the folder, for messages.

    Raises:
        ValueError: naming what differs.
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
        then = default | renames.renamed(before["variants"][name]["definition"])
        now = ablation.definition(name)
        for key, value in now.items():
            if then.get(key) != value:
                raise ValueError(
                    f"variant {name!r}: {key} is {value!r}, but {folder} was planned with {then.get(key)!r}: "
                    "give that value, another name or another workdir"
                )


def make(ablation: Ablation, folder: epath.Path, variants: list[str], progress: Progress) -> dict[str, Any]:
    """Adds variants to the budget in a folder. All processes must call it.

    Args:
        ablation: the ablation.
        folder: its folder.
        variants: names of the variants that are needed.
        progress: called with a line for every variant that is measured.

    Returns:
        {"equal", "reference", "machine", "variants": {name: {"steps", "cost" of a step, where the reference's is 1,
        "step_seconds", "spread", "definition"}}}. A variant whose step cannot be made has "failure", one line, in place
        of "steps"; that is not written, so that the variant is tried again.
    """
    wanted = list(dict.fromkeys([ablation.reference, *variants]))
    if (whole := _planned(folder, wanted)) is not None:
        return whole

    def waiting(who: str) -> None:
        progress(f"{who} is planning, one at a time does: waiting for it")

    with lock.locked(folder, jax.process_index() == 0, jax.process_count(), waiting=waiting):
        found = read(folder)
        check(ablation, found, folder)  # again: the folder may have been another's first
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("the budget is read")
        missing = [name for name in wanted if name not in (found or _empty(ablation))["variants"]]
        if found and not missing:  # who was waited for has found them
            return found
        costs = {"time": by_time, "flops": by_flops, "steps": by_steps}[ablation.equal](ablation, missing, progress)
        failed = {name: cost for name, cost in costs.items() if "failure" in cost}
        new = {
            name: {"steps": steps_of(ablation, name, cost["cost"]), **cost, "definition": ablation.definition(name)}
            for name, cost in costs.items()
            if name not in failed
        }
        found = read(folder) or _empty(ablation)
        found |= {"machine": timing.machine(), "variants": found["variants"] | new}
        if jax.process_index() == 0 and new:
            files.replace(folder / PLAN, (json.dumps(found, indent=2) + "\n").encode())
        if jax.process_count() > 1:  # each has measured times of its own
            multihost_utils.sync_global_devices("the budget is written")
            found = read(folder) or found
        return found | {"variants": failed | found["variants"]}


def _empty(ablation: Ablation) -> dict[str, Any]:
    return {"equal": ablation.equal, "reference": ablation.reference, "variants": {}}


def _planned(folder: epath.Path, wanted: list[str]) -> dict[str, Any] | None:
    """The budget in a folder if it has all these variants, the same for all processes; entries never leave it."""
    found = read(folder)
    whole = found is not None and set(wanted) <= found["variants"].keys()
    if jax.process_count() > 1:
        whole = bool(multihost_utils.broadcast_one_to_all(np.array(whole)))
        found = read(folder)
    return found if whole else None


def steps_of(ablation: Ablation, name: str, cost: float) -> int:
    """Returns the steps of a variant whose step costs `cost` steps of the reference."""
    if ablation.equal == "steps":
        return ablation.config(name).training.steps
    return max(1, round(ablation.base.training.steps / cost))


def by_steps(ablation: Ablation, missing: list[str], progress: Progress) -> dict[str, dict]:
    """Returns {name: {"cost": 1.0}}: every step costs the same."""
    return {name: {"cost": 1.0} for name in missing}


def by_flops(ablation: Ablation, missing: list[str], progress: Progress) -> dict[str, dict]:
    """Returns {name: {"cost", "step_flops"}}: a step costs the operations of the model in it."""

    @functools.cache
    def flops(name: str) -> int:
        run = with_teachers(build(ablation.config(name)))
        shape = run.image_shape[:2]
        spec = batch_spec(run.config, run.inputs.batch_size_of(shape), shape)
        batch = sharding.abstract_batch(run.mesh, spec)
        return run.trainer.model_flops(batch, run.trainer.trace(batch))

    reference, costs = flops(ablation.reference), {}
    for name in missing:
        progress(f"counting operations of {name}")
        costs[name] = _or_failure(lambda name: {"cost": flops(name) / reference, "step_flops": flops(name)}, name)
    return costs


def by_time(ablation: Ablation, missing: list[str], progress: Progress) -> dict[str, dict]:
    """Returns {name: {"cost", "step_seconds", "spread", …}}: a step costs its median seconds.

    Each variant is timed in turn with the reference; two training states are in memory at a time.
    """
    progress(f"compiling {ablation.reference}, to which the others are compared")
    costs: dict[str, dict] = {}
    reference = stepper(with_teachers(build(ablation.config(ablation.reference))))
    for i, name in enumerate(missing):
        if name == ablation.reference:
            seconds = timing.interleaved({name: reference}, REPEATS)[name]
            costs[name] = {"cost": 1.0, "step_seconds": seconds.seconds / STEPS, "spread": seconds.spread / STEPS}
        else:
            progress(f"calibrating {name} [{i + 1}/{len(missing)}]")
            costs[name] = _or_failure(_time_cost, ablation, name, reference)
    return costs


def _time_cost(ablation: Ablation, name: str, reference: Callable[[], Any]) -> dict:
    calls = {"reference": reference, "own": stepper(with_teachers(build(ablation.config(name))))}
    timed = timing.interleaved(calls, REPEATS)
    return {
        "cost": timed["own"].seconds / timed["reference"].seconds,
        "step_seconds": timed["own"].seconds / STEPS,
        "spread": timed["own"].spread / STEPS,
        "reference_step_seconds": timed["reference"].seconds / STEPS,
    }


def stepper(run: Run) -> Callable[[], Any]:
    """Returns a function that trains a run for STEPS steps on made-up examples, and goes on when called again."""
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
        logging.error("the cost of a step could not be found: %s", error)
        return {"failure": f"{type(error).__name__}: {' '.join(str(error).split())}"}
