"""What is counted in the data at a run's first start, see config/automatic.py: its classes, and what is held out."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from tim_jax import data
from tim_jax.config import automatic, values
from tim_jax.config.identity import check_keys
from tim_jax.config.sections import read
from tim_jax.data.sections import DataSettings, LoaderSettings
from tim_jax.data.settings import Inputs, open_split
from tim_jax.data.splits import HELD_OUT, NothingToHoldOut
from tim_jax.runs.input_pipeline import one_after_another

HELD_OUT_SHARE = 0.05
MAX_CLASSES = 2**16  # that are counted where the data does not say how many it has


def counted(config: ConfigDict) -> ConfigDict:
    """The configuration with the number of classes and the share to hold out that suit its data.

    Raises:
        ValueError: one line, if a key is wrong, the data is not there, or it has no labels and these are needed.
    """
    wanted = [key for key in automatic.open_keys(config) if key in automatic.COUNTED]
    if not wanted:
        return config
    check_keys(config)
    given = read(DataSettings, values.checked(config).data)
    loader = read(LoaderSettings, values.checked(config).loader)
    by_class = config.model.condition == "class"
    settings = dataclasses.replace(
        Inputs.read(dataclasses.replace(given, held_out_share=0.0, buckets=DataSettings().buckets), loader, 1),
        num_classes=MAX_CLASSES if by_class else 0,
        captions=not by_class,
    )
    found = {}
    if "data.held_out_share" in wanted:
        found["data.held_out_share"] = one_after_another(lambda: _share(settings))
    if "model.num_classes" in wanted:
        found["model.num_classes"] = one_after_another(lambda: _classes(settings))
    return automatic.with_values(config, found)


def _share(settings: Inputs) -> float:
    """HELD_OUT_SHARE, or 0 where the data has parts of its own or is too small to be parted."""
    shared = dataclasses.replace(settings, held_out_share=HELD_OUT_SHARE)
    try:
        for split in (settings.split, HELD_OUT):
            open_split(shared, split)
    except NothingToHoldOut:
        return 0.0
    return HELD_OUT_SHARE


def _classes(settings: Inputs) -> int:
    """How many classes the data has. Raises ValueError if it has no labels."""
    source = open_split(settings, settings.split)
    if source.num_classes != MAX_CLASSES:
        found = source.num_classes
    else:
        found = int(np.max(np.flatnonzero(data.label_counts(source, MAX_CLASSES, settings.directory)), initial=-1)) + 1
    if not found:
        raise ValueError(
            f"model.condition is 'class'; it must be 'text', as {source.name} has no labels that tell classes: "
            "--config=own_images_t2i trains on captions"
        )
    return found
