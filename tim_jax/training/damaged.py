"""Damaged checkpoints of a workdir, set aside so that their steps can be saved again; none is ever removed."""

import itertools

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from tim_jax.system import files
from tim_jax.system.user_errors import one_line

FOLDER = "damaged"  # of the workdir


def set_aside(manager: ocp.CheckpointManager, wrong: dict[int, str]) -> None:
    """Moves checkpoints to FOLDER, so that their steps can be saved again; all processes must call this.

    Args:
        manager: The checkpoints.
        wrong: What is wrong, by step; it is logged.
    """
    if jax.process_index() == 0:
        for step, reason in wrong.items():
            try:
                where = f"now in {move(manager.directory / str(step)).parent}"
            except OSError as error:
                where = f"and it cannot be moved away: {one_line(error)}"
            logging.warning("checkpoint of step %d not used: %s; %s", step, reason, where)
    if wrong:
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        manager.reload()


def move(folder: epath.Path) -> epath.Path:
    """Moves a checkpoint to FOLDER, beside others of its step. Returns where it is."""
    aside = folder.parent.parent / FOLDER
    names = itertools.chain([folder.name], (f"{folder.name}-{number}" for number in itertools.count(2)))
    to = next(aside / name for name in names if not (aside / name).exists())
    files.move_folder(folder, to)
    return to


def steps(directory: epath.Path) -> set[int]:
    """Returns the steps of all that have been set aside. directory: The folder of the checkpoints that are used."""
    aside = directory.parent / FOLDER
    names = [path.name.partition("-")[0] for path in aside.iterdir()] if aside.exists() else []
    return {int(name) for name in names if name.isdecimal()}
