"""Keys that are -1 are chosen at a run's first start, from its data and its machine, and recorded in config.json.

So a run goes on with the same values, also on another machine. This file has what follows from the machine;
runs/counting.py has what is counted in the data.
"""

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from tim_jax.data.sections import DataSettings
from tim_jax.networks import NETWORKS
from tim_jax.system.chips import chip_of

AUTO = -1
COUNTED = ("model.num_classes", "data.held_out_share")
CHOSEN = ("data.height", "data.width", "data.batch_size")
KEYS = (*COUNTED, *CHOSEN)
SIDE, BATCH = 64, 256  # of images and of batches on accelerators
SIDE_OF_CPU, BATCH_OF_CPU = 32, 32
# Bytes of a step's activations per token, layer and unit of width, as `python -m tim_jax.plan` finds them for
# configs/photos.py at 64 and 256 tokens: 85 and 102.
ACTIVATIONS = 128
SHARE_OF_MEMORY = 0.5  # that activations may take


def get(config: ConfigDict | Mapping[str, Any], key: str) -> Any:
    """The value of "section.key"."""
    section, name = key.split(".")
    return config[section][name]


def open_keys(config: ConfigDict) -> tuple[str, ...]:
    """The keys that are still to be chosen."""
    return tuple(key for key in KEYS if get(config, key) == AUTO)


def with_values(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """The configuration with other values of "section.key"."""
    config = copy.deepcopy(config)
    for key, value in values.items():
        section, name = key.split(".")
        config[section][name] = value
    return config


def as_recorded(config: ConfigDict, recorded: Mapping[str, Any]) -> ConfigDict:
    """The configuration with what a workdir has recorded of the keys that are still to be chosen."""
    return with_values(config, {key: get(recorded, key) for key in open_keys(config)})


def with_size(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> ConfigDict:
    """The configuration with a size of images: a width of -1 is the height, and a height of -1 suits the devices."""
    height, width = config.data.height, config.data.width
    if height == AUTO:
        devices = jax.devices() if devices is None else devices
        height = SIDE_OF_CPU if devices[0].platform == "cpu" else SIDE
    values = {"data.height": height, "data.width": height if width == AUTO else width}
    if config.data.batch_size == AUTO and config.data.buckets.tokens:
        values["data.batch_size"] = DataSettings.batch_size  # has no effect
    return with_values(config, values)


def without_data(config: ConfigDict) -> ConfigDict:
    """The configuration with one class and nothing held out, where data is to say so and is not looked at."""
    values = {"model.num_classes": 1, "data.held_out_share": 0.0}
    return with_values(config, {key: value for key, value in values.items() if get(config, key) == AUTO})


def batch_size(config: ConfigDict, devices: Sequence[jax.Device], multiple: int) -> int:
    """The size of a global batch that suits the devices.

    It is BATCH examples, or BATCH_OF_CPU, or half as often as needed to fit into the memory of one device, and then the
    next multiple of `multiple`.

    Args:
        config: with a size of images.
        devices: of the mesh.
        multiple: what it must be a multiple of.
    """
    data, model = config.data, config.model
    tokens = data.height * data.width // model.patch_size**2 + model.class_tokens + 2 * model.guidance_tokens
    size = NETWORKS[model.network].SIZES[model.size] | {key: model[key] for key in ("depth", "width") if model[key]}
    each = ACTIVATIONS * tokens * size["depth"] * size["width"]
    room = SHARE_OF_MEMORY * memory(devices[0]) * len(devices)
    chosen = BATCH_OF_CPU if devices[0].platform == "cpu" else BATCH
    while chosen > 1 and chosen * each > room:
        chosen //= 2
    return -(-chosen // multiple) * multiple


def memory(device: jax.Device) -> int:
    """Bytes of memory that a device has, by its own word, by its kind, or, of a CPU, those of its machine."""
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(jax.local_devices())
    chip = chip_of(device.device_kind)
    return chip.memory if chip else (device.memory_stats() or {}).get("bytes_limit", 8 * 2**30)


def told(given: ConfigDict, chosen: ConfigDict) -> str:
    """The line that says what was chosen, "" where nothing was."""
    values = ", ".join(f"{key}={get(chosen, key):g}" for key in open_keys(given))
    return f"chosen for this data and machine, and recorded in the workdir: {values}" if values else ""
