"""Transition Models (TiM) in JAX: one network F(x_t, t, r) that samples in any number of steps."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tim_jax.runs.interface import Tim

__version__ = "0.1.0"
__all__ = ["load"]


def load(
    path: str | os.PathLike[str],
    *,
    as_: str = "",
    ema: str = "",
    plugin: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    **overrides: Mapping[str, Any],
) -> "Tim":
    """Loads a trained run, ready to draw images.

    ```python
    tim = tim_jax.load("WORKDIR")
    images = tim("a red bicycle", steps=4, size=(512, 768), seed=0)
    ```

    Args:
        path: a workdir, for its latest checkpoint, or one of its checkpoints, WORKDIR/checkpoints/STEP; or what
            `tim-jax convert export` wrote, on this machine or as hf://owner/repository; or a file that others released.
        as_: what a file of others is, such as "sit_xl_2"; see `python -m tim_jax.convert import --as`.
        ema: which copy of the network in such a file; by default its first EMA.
        plugin: Python files of one's own to run first; see `python -m tim_jax.train --config.plugin`.
        **overrides: sections of the configuration with the keys to change, such as `sampling={"guidance": 2.5}`.

    Returns:
        The run with its weights on its devices; see `tim_jax.runs.interface.Tim`.

    Raises:
        ValueError: one line that names what is wrong.
    """
    from tim_jax.runs import interface  # with JAX, for a light `import tim_jax`

    return interface.load(path, as_=as_, ema=ema, plugin=plugin, **overrides)
