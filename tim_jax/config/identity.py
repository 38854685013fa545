"""What a whole configuration is held against: the keys of configs/base.py, and the run that a workdir has recorded."""

import copy
import json
from typing import Any

from ml_collections import ConfigDict

from tim_jax.config import plugins, recorded_plugins, renames
from tim_jax.config.keys import FREE, flatten, hint, nested

IDENTITY = (
    "seed", "data", "codecs", "model", "transport", "times", "objective", "teacher", "optimizer", "ema", "posthoc_ema",
    "start",
)  # fmt: skip
# Keys of those sections that may change all the same: where pretrained models lie and how they compute, what no result
# depends on but by rounding, where teachers and a reward's classifier lie, whose checksums are compared instead, how
# EMAs are stored, and when the learning rate reaches 0, so that a run can be extended as training.steps says.
CODECS = ("autoencoder", "text_encoder", "image_encoder", "text_memory", "dtype", "tile")
CHANGEABLE = (
    "model.attention", "model.remat", *(f"codecs.{key}" for key in CODECS), "teacher.checkpoint",
    "teacher.weak_checkpoint", "objective.reward.classifier", "optimizer.decay_steps", "posthoc_ema.every",
    "posthoc_ema.dtype",
)  # fmt: skip


def check_keys(config: ConfigDict) -> None:
    """Raises ValueError for a key that configs/base.py does not have, with the right one, or a missing one."""
    known = set(flatten(plugins.base_config(config.get("plugin", ()))))
    given = flatten(config)
    for key in given:
        if key not in known and key.split(".")[0] not in FREE:
            raise ValueError(f"config.{key}: no such key; {hint(key, known, 'config.')}")
    for key in sorted(known - set(given)):
        if key.split(".")[0] not in FREE:
            raise ValueError(f"config.{key}: missing; start from configs/base.py, which holds every key")


def of(config: ConfigDict | dict[str, Any]) -> dict[str, Any]:
    """The keys that make a run what it is, flat."""
    flat = flatten(config)
    return {key: flat[key] for key in flat if key.split(".")[0] in IDENTITY and key not in CHANGEABLE}


def completed(recorded: dict[str, Any]) -> dict[str, Any]:
    """A recorded configuration by today's names, with the values that keys which have come since stand for in it."""
    defaults = flatten(json.loads(plugins.base_config(recorded.get("plugin", ())).to_json()))
    given = renames.renamed(flatten(recorded))
    missing = {key: value for key, value in defaults.items() if key.split(".")[0] not in FREE}
    return nested(missing | given) | {name: recorded.get(name, {}) for name in FREE}


def with_recorded_schedule(recorded: dict[str, Any], config: ConfigDict) -> ConfigDict:
    """A configuration with the `optimizer.decay_steps` that its workdir has recorded, unless it has its own."""
    before, now = recorded["optimizer"], flatten(config)
    if now.get("optimizer.decay_steps") != 0 or now.get("optimizer.schedule") != before["schedule"]:
        return config
    config = copy.deepcopy(config)
    config.optimizer.decay_steps = before["decay_steps"]
    return config


def compare(recorded: dict[str, Any], config: ConfigDict, workdir: Any) -> None:
    """Raises ValueError, naming the first key that differs, if a workdir's recorded configuration is another run's."""
    recorded_plugins.compare(recorded.get("plugin", ()), config.plugin, workdir)
    before, now = of(recorded), json.loads(json.dumps(of(config)))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise ValueError(
                f"{key} is {now.get(key)!r}; it must be {before.get(key)!r}, since {workdir} holds a run with that: "
                "give another workdir otherwise"
            )
