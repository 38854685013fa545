"""The weights of a workdir's latest good checkpoint, whose run may be at work."""

from typing import Any

from absl import logging
from etils import epath

from tim_jax.config.run import Run
from tim_jax.system import files
from tim_jax.training import checkpoints, warm_start


def load_weights(run: Run, workdir: epath.Path, ema: str = "") -> tuple[Any, int]:
    """Reads weights by their name from the latest good checkpoint of a workdir.

    Nothing else of the checkpoint is restored, and that only once the checksums of all its files are right.

    Args:
        run: the workdir's run, on whose mesh the weights are placed.
        workdir: its folder.
        ema: a name as `warm_start.find_weights` takes it; "" for `sampling.ema`.

    Returns:
        The parameters and the training step they are of.

    Raises:
        ValueError: if there is no checkpoint, or no such weights in it.
    """
    saved = good_checkpoint(workdir)
    return read_weights(run, saved, ema), saved.step


def good_checkpoint(workdir: epath.Path) -> warm_start.Saved:
    """Returns the latest good checkpoint of a workdir, whose run may be at work; see `Saved.hold`.

    Raises:
        ValueError: if there is no checkpoint.
    """
    none = ValueError(f"--workdir={workdir}: has no checkpoint yet")
    if not (workdir / "checkpoints").exists():
        raise none
    with checkpoints.opened(files.absolute(workdir) / "checkpoints") as manager:
        step, damaged, hold = checkpoints.hold_good(manager)
        if step is None:
            raise none
        for later, reason in damaged.items():
            logging.warning("checkpoint of step %d not used: %s", later, reason)
        return warm_start.Saved(manager.directory, step, hold)


def read_weights(run: Run, saved: warm_start.Saved, ema: str = "") -> Any:
    """Reads weights of a checkpoint, as `load_weights` does of the latest."""
    ema = ema or run.sampling.ema
    warm_start.find_weights(saved, ema, "sampling.ema")
    return warm_start.read_network(saved, ema, run.trainer.abstract_online)
