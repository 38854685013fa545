"""Checkpoints by orbax: the whole state and a record of what made it, written and summed up in the background."""

import contextlib
import functools
import logging as python_logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax.traverse_util import unflatten_dict
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from tim_jax.system import files
from tim_jax.training import checksums, formats, names
from tim_jax.training.state import TrainState

DAMAGED = "damaged"  # folder of the workdir that checkpoints are moved to when they do not match their manifest
NO_MANIFEST = "its checksums are missing"

# Of a failed write, orbax logs many stacks, and asyncio one for every array; Saver says it in one line.
logging.get_absl_logger().addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)
python_logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())


def open_manager(
    workdir: epath.Path, keep: int, every: int, keep_every: int = 0, read_only: bool = False
) -> ocp.CheckpointManager:
    """Opens the checkpoints of a workdir.

    Orbax writes to a temporary folder, renames it, and only then deletes what is not to stay.

    Args:
        workdir: The run's folder.
        keep: How many of the latest checkpoints stay, at least 1.
        every: Steps from one checkpoint to the next.
        keep_every: Checkpoints whose step is a multiple of this stay for good; 0 for none.
        read_only: Whether nothing may be written or cleaned up.
    """
    latest = preservation_policy.LatestN(keep)
    for_good = [preservation_policy.EveryNSteps(keep_every)] if keep_every else []
    options = ocp.CheckpointManagerOptions(
        save_interval_steps=every,
        preservation_policy=preservation_policy.AnyPreservationPolicy([latest, *for_good]),
        cleanup_tmp_directories=not read_only,
        lightweight_initialize=True,  # a damaged checkpoint must not keep the others from being read
        read_only=read_only,
    )
    return ocp.CheckpointManager(files.absolute(workdir) / "checkpoints", options=options)


class DamagedCheckpoints(ValueError):
    """A workdir has checkpoints, but none that can be used."""


class Saver:
    """Saves in the background, one checkpoint at a time. A failure is logged at once, and training goes on.

    Attributes:
        saved: The latest step whose checkpoint is complete, with its manifest, or None.
        failures: What could not be written, a line each.
    """

    def __init__(self, manager: ocp.CheckpointManager, what: str = "checkpoint"):
        """Args:
        manager: Of the folder.
        what: What is saved, for messages.
        """
        self.manager, self._what = manager, what
        self.saved: int | None = None
        self.failures: list[str] = []
        _hush_closed_loops()
        self._thread: threading.Thread | None = None

    def save(self, step: int, state: Any, record: dict) -> None:
        """Saves the state of a step, once the checkpoint before it is done. The data position is the step itself.

        Args:
            step: Of the state.
            state: A tree of arrays on the mesh.
            record: What the checkpoint says of the run that made it, such as its configuration; JSON.
        """
        self._settle()
        items = ocp.args.Composite(state=ocp.args.StandardSave(formats.stored(state)), record=ocp.args.JsonSave(record))
        try:
            self.manager.save(step, args=items, force=True)
        except Exception as error:
            self._fail(step, error)
        else:
            self._thread = threading.Thread(target=self._finish, args=(step,), name="manifest")
            self._thread.start()

    def wait(self) -> None:
        """Waits until nothing is being written."""
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Waits as well, and closes the checkpoints."""
        self._settle()
        self.manager.close()

    def _settle(self) -> None:
        self.wait()
        if self.failures:  # the manager raises an error once in each thread, and has dropped what it meant to delete
            with contextlib.suppress(Exception):
                self.manager.wait_until_finished()
            self._clear()  # again: threads of a failed write may have gone on for a while
            self.manager.reload()

    def _finish(self, step: int) -> None:
        folder = self.manager.directory / str(step)
        try:
            self.manager.wait_until_finished()
            checksums.write(folder, jax.process_index(), jax.process_count())
        except Exception as error:
            self._fail(step, error)
        else:
            self.saved = step

    def _clear(self) -> None:
        """Removes what was begun, which must not take room from what comes next."""
        if jax.process_index() == 0:
            for path in self.manager.directory.glob("[0-9]*.*"):
                with contextlib.suppress(OSError):
                    path.rmtree()

    def _fail(self, step: int, error: Exception) -> None:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if len(reason) > 300:  # it begins with the files and ends with what went wrong
            reason = f"{reason[:100]} … {reason[-200:]}"
        self.failures.append(f"the {self._what} of step {step} could not be written: {reason}")
        self._clear()
        logging.warning("%s; training goes on", self.failures[-1])


def restore(manager: ocp.CheckpointManager, abstract: Any, step: int | None = None) -> Any:
    """Returns the state of a checkpoint, with today's names whatever format it has.

    Args:
        manager: The checkpoints.
        abstract: A tree of jax.ShapeDtypeStruct with shardings, on any mesh.
        step: Which checkpoint; the latest by default.

    Raises:
        ValueError: If there is no such checkpoint.
        UnknownFormat: If it was written by a later version.
    """
    step = manager.latest_step() if step is None else step
    if step is None or step not in manager.all_steps():
        found = ", ".join(map(str, manager.all_steps())) or "none"
        raise ValueError(f"checkpoint step {step}: not in {manager.directory}, which has {found}")
    format = format_of(manager, step)
    then = formats.state_then(abstract, format)
    wanted = ocp.args.Composite(state=ocp.args.StandardRestore(formats.stored(then)))
    state: Any = manager.restore(step, args=wanted)["state"]
    if isinstance(then, TrainState) and not then.memory:
        state = TrainState(**state)
    return formats.state_today(state, format)


@contextlib.contextmanager
def opened(directory: epath.Path, whole: bool = True) -> Iterator[ocp.CheckpointManager]:
    """A context with the checkpoints in a folder, to be read. whole: whether states are read with all their parts."""
    handlers = {
        "state": ocp.StandardCheckpointHandler() if whole else ocp.PyTreeCheckpointHandler(),
        "record": ocp.JsonCheckpointHandler(),
    }
    options = ocp.CheckpointManagerOptions(create=False, lightweight_initialize=True)
    manager = ocp.CheckpointManager(directory, options=options, item_handlers=handlers)
    try:
        yield manager
    finally:
        manager.close()


def read_part(
    manager: ocp.CheckpointManager, step: int, part: Sequence[str], abstract: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Returns parameters by name from a part of a state; nothing else is read.

    Args:
        manager: The checkpoints, opened with whole=False.
        step: Which one.
        part: The keys that lead to the parameters, such as ("emas", "slow").
        abstract: Shapes, types and shardings of the parameters to read, by name.
    """
    item: Any = unflatten_dict(dict(abstract), sep="/")
    for key in reversed(part):
        item = {key: item}
    args = ocp.args.PyTreeRestore(
        item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
    )
    tree = manager.restore(step, args=ocp.args.Composite(state=args))["state"]
    for key in part:
        tree = tree[key]
    return names.by_name(tree)


def format_of(manager: ocp.CheckpointManager, step: int) -> int:
    """Returns the format of a checkpoint. Raises UnknownFormat for one of a later version."""
    return formats.of_record(read_record(manager, step), manager.directory / str(step))


def read_record(manager: ocp.CheckpointManager, step: int) -> dict:
    """Returns what a checkpoint says of the run that made it."""
    return manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]


def latest_good(manager: ocp.CheckpointManager) -> tuple[int | None, dict[int, str]]:
    """Returns the latest step whose checkpoint matches its manifest, and what is wrong with each later one.

    A checkpoint without a manifest, whose process ended before it was written, counts as good where no other is. All
    processes must call this; they share the reading.

    Raises:
        DamagedCheckpoints: If there are checkpoints and all are damaged.
    """
    wrong: dict[int, str] = {}
    for step in sorted(manager.all_steps(), reverse=True):
        found = damage(manager.directory / str(step))
        if found is None:
            return step, wrong
        wrong[step] = found
    for step, found in wrong.items():
        if found == NO_MANIFEST:
            return step, {later: reason for later, reason in wrong.items() if later > step}
    if wrong:
        listed = "; ".join(f"step {step}: {reason}" for step, reason in wrong.items())
        raise DamagedCheckpoints(f"{manager.directory}: no checkpoint can be used ({listed})")
    return None, {}


def damage(folder: epath.Path) -> str | None:
    """Returns what is wrong with a checkpoint, or None; the same on all processes, which share the reading."""
    process, count = jax.process_index(), jax.process_count()
    found = checksums.damage(folder, process, count) if checksums.has_manifest(folder) else NO_MANIFEST
    if count > 1:
        codes = multihost_utils.process_allgather(np.array([0 if found is None else 2 if found == NO_MANIFEST else 1]))
        if 1 in codes:
            return found if found and found != NO_MANIFEST else "another process found damage"
        return NO_MANIFEST if 2 in codes else None
    return found


def set_aside(manager: ocp.CheckpointManager, wrong: dict[int, str]) -> None:
    """Moves checkpoints to the folder DAMAGED of the workdir, so that their steps can be saved again.

    Args:
        manager: The checkpoints.
        wrong: What is wrong, by step; it is logged.
    """
    if jax.process_index() == 0:
        aside = manager.directory.parent / DAMAGED
        for step, reason in wrong.items():
            logging.warning("checkpoint of step %d not used: %s; now in %s", step, reason, aside)
            (aside / str(step)).rmtree(missing_ok=True)
            files.move_folder(manager.directory / str(step), aside / str(step))
    if wrong:
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        manager.reload()


def abstract_state(shapes: Any, shardings: Any) -> Any:
    """Returns shapes and shardings, trees of one structure, as a tree of jax.ShapeDtypeStruct."""

    def leaf(shape, sharding):
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    return jax.tree.map(leaf, shapes, shardings)


@functools.cache
def _hush_closed_loops() -> None:
    """Keeps quiet the writes that find the event loop closed when a save fails; there may be hundreds."""
    former = sys.unraisablehook

    def hook(about: Any) -> None:
        if str(about.exc_value) != "Event loop is closed":
            former(about)

    sys.unraisablehook = hook
