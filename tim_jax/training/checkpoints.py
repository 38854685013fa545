"""Checkpoints by orbax: the whole state and a record of what made it, written in the background."""

from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from tim_jax import files

FORMAT = 1  # of what a checkpoint holds; a change that old checkpoints do not survive adds one


def open_manager(workdir: epath.Path, keep: int, every: int) -> ocp.CheckpointManager:
    """The checkpoints of a workdir: the latest `keep` stay, one is due every `every` steps."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, save_interval_steps=every)
    return ocp.CheckpointManager(files.absolute(workdir) / "checkpoints", options=options)


def save(manager: ocp.CheckpointManager, step: int, state: Any, record: dict, force: bool = False) -> bool:
    """Saves the state of a step in the background if one is due, or with `force`; returns whether it did.

    The data position is the step itself. record: JSON, such as the configuration.
    """
    if not (force or manager.should_save(step)):
        return False
    items = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
    return manager.save(step, args=items, force=force)


def restore(manager: ocp.CheckpointManager, abstract: Any, step: int | None = None) -> Any:
    """The state of a checkpoint (the latest by default), on the shardings of `abstract`.

    abstract: a tree of jax.ShapeDtypeStruct with shardings; it may be on another mesh than the one that saved.
    Raises ValueError if there is no such checkpoint.
    """
    step = manager.latest_step() if step is None else step
    if step is None or step not in manager.all_steps():
        found = ", ".join(map(str, manager.all_steps())) or "none"
        raise ValueError(f"checkpoint step {step}: not in {manager.directory}, which has {found}")
    return manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))["state"]


def abstract_state(shapes: Any, shardings: Any) -> Any:
    """Shapes and shardings as one tree of jax.ShapeDtypeStruct."""

    def leaf(shape, sharding):
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    return jax.tree.map(leaf, shapes, shardings)
