"""Checkpoints by orbax: the whole state and a record of its run, written, read back and summed up in the background."""

import contextlib
import functools
import logging as python_logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax.traverse_util import unflatten_dict
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from tim_jax.system import files, holds, peers
from tim_jax.system.user_errors import one_line
from tim_jax.training import checksums, damaged, formats, names, proof, removal
from tim_jax.training.background import BackgroundSaver
from tim_jax.training.state import TrainState

NO_MANIFEST = "its checksums are missing"
GONE = "it has been removed"
PATIENCE = 60.0  # seconds that the first process waits for the manifests of others
TRIES = 20  # looks for a checkpoint where a run removes the ones that were found
LISTED = 256  # latest checkpoints that processes agree on

# Of a failed write, orbax logs many stacks, and asyncio one for every array; Saver says it in one line.
logging.get_absl_logger().addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)
python_logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())


class Manager(ocp.CheckpointManager):
    """The checkpoints of a folder, of which this class removes none: `Saver` does, once a newer one is proven.

    Attributes:
        keep: How many of the latest stay; 0 for all.
        keep_every: Those whose step is a multiple of this stay for good; 0 for none.
    """

    def __init__(self, directory: epath.Path, keep: int = 0, keep_every: int = 0, read_only: bool = False):
        if not read_only and jax.process_index() == 0:
            removal.clear(directory)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.PreserveAll(),
            cleanup_tmp_directories=False,  # which takes all that has a part of its names for its own
            lightweight_initialize=True,  # a damaged checkpoint must not keep the others from being read
            read_only=read_only,
        )
        super().__init__(directory, options=options)
        self.keep, self.keep_every = keep, keep_every

    def superfluous(self, step: int) -> list[int]:
        """Returns the steps whose checkpoints need not stay once that of `step` is proven."""
        if not self.keep:
            return []
        steps = sorted(
            at for path in self.directory.iterdir() if path.name.isdigit() and (at := int(path.name)) <= step
        )
        return [at for at in steps[: -self.keep] if not (self.keep_every and at % self.keep_every == 0)]


def open_manager(workdir: epath.Path, keep: int, *, keep_every: int = 0, read_only: bool = False) -> Manager:
    """Opens the checkpoints of a workdir.

    Orbax writes to a temporary folder and renames it. Only what has been tried and summed up then lets older ones go.

    Args:
        workdir: The run's folder.
        keep: How many of the latest checkpoints stay, at least 1.
        keep_every: Checkpoints whose step is a multiple of this stay for good; 0 for none.
        read_only: Whether nothing may be written or cleaned up.
    """
    return Manager(files.absolute(workdir) / "checkpoints", keep, keep_every, read_only)


class DamagedCheckpoints(ValueError):
    """A workdir has checkpoints, but none that can be used.

    Attributes:
        wrong: What is wrong with each, by step.
    """

    def __init__(self, message: str, wrong: Mapping[int, str]):
        super().__init__(message)
        self.wrong = dict(wrong)


class Saver(BackgroundSaver):
    """Saves in the background, one checkpoint at a time. A failure is logged at once, and training goes on.

    A checkpoint is believed once its structure has been read back. Then its manifest is written, and older checkpoints
    that need not stay are removed.

    """

    def __init__(self, manager: Manager, what: str = "checkpoint"):
        """Args:
        manager: Of the folder.
        what: What is saved, for messages.
        """
        super().__init__("manifest")
        self.manager, self._what = manager, what
        self._settled = 0  # of the failures: those after which was cleared again
        _hush_closed_loops()

    def save(self, step: int, state: Any, record: dict) -> None:
        """Saves the state of a step, once the checkpoint before it is done. The data position is the step itself.

        Args:
            step: Of the state.
            state: A tree of arrays on the mesh.
            record: What the checkpoint says of the run that made it, such as its configuration; JSON.
        """
        self._settle()
        began = time.perf_counter()
        if found := proof.not_finite(state):
            return self._fail(step, proof.NotProven(f"{found} is not finite"))
        items = ocp.args.Composite(state=ocp.args.StandardSave(formats.stored(state)), record=ocp.args.JsonSave(record))
        try:
            self.manager.save(step, args=items, force=True)
        except Exception as error:
            self._fail(step, error)
        else:
            shapes = proof.shapes_of(formats.stored(state))
            self.begin(self._finish, step, shapes, began)

    def close(self) -> None:
        """Waits as well, and closes the checkpoints."""
        self._settle()
        self.manager.close()

    def _settle(self) -> None:
        self.wait()
        if len(self.failures) > self._settled:
            # The manager raises an error once in each thread, and has dropped what it meant to delete.
            with contextlib.suppress(Exception):
                self.manager.wait_until_finished()
            self._clear()  # again: threads of a failed write may have gone on for longer
            self.manager.reload()
            self._settled = len(self.failures)

    def _finish(self, step: int, shapes: list[tuple], began: float) -> None:
        folder = self.manager.directory / str(step)
        try:
            self.manager.wait_until_finished()
            written = time.perf_counter()
            if jax.process_index() == 0 and (found := proof.broken(folder, shapes)):
                damaged.move(folder)
                raise proof.NotProven(found)
            checksums.write(folder, jax.process_index(), jax.process_count())
        except Exception as error:
            self._fail(step, error)
        else:
            self.done(step, began, written)
            self._prune(step)

    def _prune(self, step: int) -> None:
        """Removes the checkpoints that need not stay. What a reader holds waits for the next time."""
        if jax.process_index() == 0 and self._summed_up(step):
            for old in self.manager.superfluous(step):
                try:
                    removal.remove(self.manager.directory / str(old))
                except OSError as error:
                    logging.warning("the %s of step %d could not be removed: %s", self._what, old, error)

    def _summed_up(self, step: int) -> bool:
        """Whether all processes have written their manifests; those of the others are waited for."""
        end = time.monotonic() + PATIENCE
        while not (done := checksums.has_manifest(self.manager.directory / str(step))) and time.monotonic() < end:
            time.sleep(0.1)
        return done

    def _clear(self) -> None:
        """Removes what was begun, which must not take room from what comes next."""
        if jax.process_index() == 0:
            removal.clear(self.manager.directory, calm=1.0)

    def _fail(self, step: int, error: Exception) -> None:
        peers.leave_if_gone(error)
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if len(reason) > 300:  # it begins with the files and ends with what went wrong
            reason = f"{reason[:100]} … {reason[-200:]}"
        self.failures.append(f"the {self._what} of step {step} could not be written: {reason}")
        logging.warning("%s; training goes on", self.failures[-1])
        self._clear()


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

    Raises:
        UnknownFormat: If it was written by a later version.
    """
    format_of(manager, step)
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
    """Returns what a checkpoint says of the run that made it.

    Raises:
        UnknownFormat: If it was written by a later version.
        ValueError: If it cannot be read.
    """
    folder = manager.directory / str(step)
    if found := checksums.unreadable(folder / "record"):
        raise ValueError(f"{folder}: record/{found}")
    try:
        record = manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder}: its record is no JSON ({one_line(error)})") from None
    if not isinstance(record, dict):
        raise ValueError(f"{folder}: its record is not an object of JSON")
    formats.of_record(record, folder)
    return record


def latest_good(manager: ocp.CheckpointManager) -> tuple[int | None, dict[int, str]]:
    """Returns the latest step whose checkpoint matches its manifest, and what is wrong with each later one.

    A checkpoint without a manifest, whose process ended before it was written, counts as good where no other is. All
    processes must call this; they share the reading.

    Raises:
        DamagedCheckpoints: If there are checkpoints and all are damaged.
    """
    return hold_good(manager)[:2]


def hold_good(manager: ocp.CheckpointManager) -> tuple[int | None, dict[int, str], holds.Hold | None]:
    """As `latest_good`, of a folder from which a run may remove checkpoints meanwhile.

    Returns:
        Step and damages, and what keeps the checkpoint from being removed while it is alive.
    """
    for _ in range(TRIES):
        steps = agreed(manager.all_steps())
        wrong: dict[int, str] = {}
        held: dict[int, holds.Hold | None] = {}
        for step in steps:
            hold, found = examined(manager.directory / str(step))
            if found == GONE:
                continue
            if found is None:
                return step, wrong, hold
            wrong[step], held[step] = found, hold
        for step, found in wrong.items():
            if found == NO_MANIFEST:
                return step, {later: reason for later, reason in wrong.items() if later > step}, held[step]
        if wrong:
            listed = "; ".join(f"step {step}: {reason}" for step, reason in wrong.items())
            raise DamagedCheckpoints(f"{manager.directory}: no checkpoint can be used ({listed})", wrong)
        if not steps:
            break
        manager.reload()  # all of them are gone, and others there
    return None, {}, None


def agreed(steps: Iterable[int]) -> list[int]:
    """Returns the latest steps, newest first, as the first process sees them; all processes must call this."""
    found = sorted(steps, reverse=True)[:LISTED]
    if jax.process_count() == 1:
        return found
    padded = np.array(found + [-1] * (LISTED - len(found)), np.int64)
    halves = multihost_utils.broadcast_one_to_all(np.stack([padded >> 31, padded & (2**31 - 1)]).astype(np.int32))
    whole = (np.asarray(halves[0], np.int64) << 31) | np.asarray(halves[1], np.int64)
    return [int(step) for step in whole if step >= 0]


def examined(folder: epath.Path) -> tuple[holds.Hold | None, str | None]:
    """A hold of a checkpoint, and what is wrong with it, or GONE; the latter is the same on all processes."""
    hold = None
    with contextlib.suppress(holds.Gone):
        hold = holds.Hold(folder)
    return hold, damage(folder, hold is None)


def damage(folder: epath.Path, gone: bool = False) -> str | None:
    """Returns what is wrong with a checkpoint, or None; the same on all processes, which share the reading.

    gone: Whether this process has not found it at all; if any has not, all return GONE.
    """
    process, count = jax.process_index(), jax.process_count()
    found = GONE if gone else checksums.not_a_file(folder / "record" / "metadata")
    if found not in (None, GONE):
        found = f"record/metadata {found}"
    if found is None:
        try:
            found = checksums.damage(folder, process, count) if checksums.has_manifest(folder) else NO_MANIFEST
        except OSError as error:
            found = f"it cannot be listed: {error.strerror or error}"
    if process == 0 and found in (None, NO_MANIFEST):
        found = proof.broken(folder) or found
    if count > 1:
        kinds = (None, NO_MANIFEST, "another process found damage", GONE)
        code = kinds.index(found) if found in kinds else 2
        worst = kinds[int(multihost_utils.process_allgather(np.array([code])).max())]
        return found if code == 2 and worst == kinds[2] else worst
    return found


@functools.cache
def _hush_closed_loops() -> None:
    """Keeps quiet the writes that find the event loop closed when a save fails; there may be hundreds."""
    former = sys.unraisablehook

    def hook(about: Any) -> None:
        if str(about.exc_value) != "Event loop is closed":
            former(about)

    sys.unraisablehook = hook
