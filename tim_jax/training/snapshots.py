"""Snapshots of power-function EMAs in the folder `snapshots` of a workdir, and EMAs synthesised from them.

A snapshot is whole before the checkpoint of its step, or of a later one, is begun: a run that goes on from a checkpoint
has all snapshots up to there. A run that passes a step again writes its snapshot again. None is ever removed.
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from tim_jax.system import files
from tim_jax.system.progress import Activity
from tim_jax.training import checkpoints, power_ema
from tim_jax.training.power_ema import Profile
from tim_jax.training.state import TrainState

FOLDER = "snapshots"
MAX_ERROR = 0.05  # of a synthesised profile, relative; a larger one is told

Weights = dict[str, jax.Array]  # by names of parameters


class Snapshots:
    """Writes the snapshots of a run."""

    def __init__(self, workdir: epath.Path, every: int, dtype: str):
        """Args:
        workdir: The run's folder.
        every: Steps from one snapshot to the next.
        dtype: Which EMAs are rounded to.
        """
        self._directory, self._every = files.absolute(workdir) / FOLDER, every
        self._saver: checkpoints.Saver | None = None
        self._cast = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf.astype(dtype), tree))

    @property
    def failures(self) -> list[str]:
        """What could not be written, a line each."""
        return self._saver.failures if self._saver else []

    def due(self, step: int) -> bool:
        """Whether there is a snapshot of this step."""
        return step % self._every == 0

    def save(self, step: int, state: TrainState) -> None:
        """Writes the power-function EMAs of a state; returns when they are written. A failure is logged.

        What is there of this step, which a run that was killed has left, is replaced: it may have been another path.
        """
        if self._saver is None:
            self._saver = checkpoints.Saver(checkpoints.Manager(self._directory), "snapshot")
        if step in self._saver.manager.all_steps():
            self._saver.manager.delete(step)
        kept = {name: tree for name, tree in state.emas.items() if power_ema.named(name)}
        self._saver.save(step, self._cast(kept), {"sigma_rel": [power_ema.named(name) for name in kept]})
        self._saver.wait()

    def close(self) -> None:
        """Closes the folder; the next snapshot opens it again."""
        if self._saver is not None:
            self._saver.close()
            self._saver = None


def size(emas: Mapping[str, Any], dtype: str) -> int:
    """Returns the bytes of a snapshot of EMAs, trees of arrays or of their shapes by name, of which some are stored."""
    stored = (tree for name, tree in emas.items() if power_ema.named(name))
    return sum(math.prod(leaf.shape) for tree in stored for leaf in jax.tree.leaves(tree)) * jnp.dtype(dtype).itemsize


def copy(workdir: epath.Path, step: int, to: epath.Path) -> None:
    """Copies the snapshots of a workdir up to a step into that of a run which goes on from there."""
    directory = files.absolute(workdir) / FOLDER
    if jax.process_index() == 0 and directory.exists():
        for path in directory.iterdir():
            if path.name.isdigit() and int(path.name) <= step:
                (to / FOLDER / path.name).rmtree(missing_ok=True)
                files.copy_folder(path, files.absolute(to) / FOLDER / path.name)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("snapshots are copied")


def synthesise(
    workdir: epath.Path,
    step: int,
    sigma_rel: float,
    names: Mapping[str, float],
    read: Callable[[str, Mapping[str, jax.ShapeDtypeStruct]], Weights],
    abstract: Mapping[str, jax.ShapeDtypeStruct],
) -> Weights:
    """Makes the power-function EMA of any length from the stored ones; all processes must call this.

    Args:
        workdir: Where the snapshots are. Those of later steps, and damaged ones, are left alone.
        step: Of the EMA, of which there is a checkpoint.
        sigma_rel: Of the EMA.
        names: σ_rel of the EMAs in snapshots and checkpoint, by their names.
        read: Reads one of these from the checkpoint, by its name and shapes.
        abstract: Shapes, types and shardings of the parameters to make, by name.

    Returns:
        The parameters by name. How far the profile is from the true one is logged where that is more than MAX_ERROR.
    """
    if step == 0:  # before the first step all EMAs are the first parameters
        return read(next(iter(names)), abstract)
    in_float32 = {
        name: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding) for name, leaf in abstract.items()
    }
    steps = _whole(workdir, step)
    profiles = [Profile(at, value) for at in (*steps, step) for value in names.values()]
    coefficients, error = power_ema.synthesis(profiles, Profile(step, sigma_rel))
    name = power_ema.name_of(sigma_rel)
    if error > MAX_ERROR:
        logging.warning(
            "%s at step %d is synthesised from %d snapshots but for %.0f%% of its profile: posthoc_ema.every says how "
            "many there are, and lengths near %s come out best",
            name, step, len(steps), 100 * error, ", ".join(names),
        )  # fmt: skip
    add = jax.jit(lambda total, more, c: jax.tree.map(lambda a, b: a + c * b, total, more), donate_argnums=0)
    total: Any = None
    what = f"synthesising {name} from {len(steps)} snapshots"
    with contextlib.ExitStack() as stack:
        activity = stack.enter_context(Activity(what, len(steps) + 1, disable=jax.process_index() > 0))
        opened = checkpoints.opened(files.absolute(workdir) / FOLDER, whole=False)
        manager = stack.enter_context(opened) if steps else None
        shares = iter(coefficients.astype(np.float32))
        for at in (*steps, step):
            for part in names:
                if manager is None or at == step:
                    weights = read(part, in_float32)
                else:
                    weights = checkpoints.read_part(manager, at, (part,), in_float32)
                share = next(shares)
                total = jax.tree.map(lambda x: share * x, weights) if total is None else add(total, weights, share)
            if at != step:
                activity.next(what)
    return {name: total[name].astype(leaf.dtype) for name, leaf in abstract.items()}


def _whole(workdir: epath.Path, step: int) -> list[int]:
    """The steps before `step` whose snapshots are what was written."""
    directory = files.absolute(workdir) / FOLDER
    if not directory.exists():
        return []
    found = sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())
    good = []
    for at in (at for at in found if at < step):
        wrong = checkpoints.damage(directory / str(at))
        if wrong is None:
            good.append(at)
        else:
            logging.warning("snapshot of step %d not used: %s", at, wrong)
    return good
