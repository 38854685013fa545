"""The keys of a configuration: which there are, and which make a run what it is.

Their names are those of configs/base.py, so that a mistyped one is seen before anything is imported that takes time.
"""

import copy
import difflib
import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from tim_jax.config import loading, renames

FREE = ("ema",)  # sections whose keys are names that anybody may give
IDENTITY = (
    "seed", "data", "codecs", "model", "transport", "times", "objective", "teacher", "optimizer", "ema", "start",
)  # fmt: skip
# Keys of those sections that may change all the same: where pretrained models lie and how they compute, what no result
# depends on but by rounding, where teachers lie, whose checksums are compared instead, and when the learning rate
# reaches 0, so that a run can be extended as training.steps says.
CODECS = ("autoencoder", "text_encoder", "image_encoder", "dtype", "tile")
CHANGEABLE = (
    "model.attention", "model.remat", *(f"codecs.{key}" for key in CODECS), "teacher.checkpoint",
    "teacher.weak_checkpoint", "optimizer.decay_steps",
)  # fmt: skip


def known_keys() -> list[str]:
    """All keys; those of FREE sections are the examples of configs/base.py."""
    return list(flatten(loading.load("base").get_config()))


def check_given(given: Iterable[str], known: Collection[str]) -> None:
    """Raises ValueError for a key of the command line that is none of the known ones, with the right one."""
    for key in given:
        section, _, name = key.partition(".")
        if key not in known and not (section in FREE and name and "." not in name):
            raise ValueError(f"--config.{key}: no such key; {hint(key, known, '--config.')}")


def check_keys(config: ConfigDict) -> None:
    """Raises ValueError for a key that configs/base.py does not have, with the right one, or a missing one."""
    from tim_jax.config import plugins

    known = set(flatten(plugins.base_config(config.get("plugin", ()))))
    given = flatten(config)
    for key in given:
        if key not in known and key.split(".")[0] not in FREE:
            raise ValueError(f"config.{key}: no such key; {hint(key, known, 'config.')}")
    for key in sorted(known - set(given)):
        if key.split(".")[0] not in FREE:
            raise ValueError(f"config.{key}: missing; start from configs/base.py, which holds every key")


def hint(key: str, known: Iterable[str], before: str) -> str:
    """What to say of a key that is none: its new name, the keys that end as it does, or the nearest key."""
    if key in renames.KEYS:
        return f"renamed to {before}{renames.KEYS[key]}"
    near = ending(key, known) or difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"did you mean {' or '.join(f'{before}{one}' for one in near)}?"


def ending(name: str, known: Iterable[str]) -> list[str]:
    """The known keys whose last parts are that name, shortest first: for "steps" training.steps and others."""
    return sorted((key for key in known if f".{key}".endswith(f".{name}")), key=lambda key: (key.count("."), key))


def check_left(keys: Iterable[str], reason: str, config: ConfigDict, default: ConfigDict) -> None:
    """Raises ValueError for one of these keys, which have no effect for that reason, if it is not at its default."""
    given, right = flatten(config), flatten(default)
    for key in keys:
        if given[key] != right[key]:
            raise ValueError(
                f"{key} is {given[key]!r}; it must be {right[key]!r}, since it has no effect where {reason}"
            )


def flatten(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """{"section.key": value} of a nested configuration."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, ConfigDict | dict) else {name: value}
    return flat


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`, as dicts."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, last = key.split(".")
        section = tree
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
    return tree


def identity(config: ConfigDict | dict[str, Any]) -> dict[str, Any]:
    """The keys that make a run what it is, flat."""
    flat = flatten(config)
    return {key: flat[key] for key in flat if key.split(".")[0] in IDENTITY and key not in CHANGEABLE}


def completed(recorded: dict[str, Any]) -> dict[str, Any]:
    """A recorded configuration by today's names, with the values that keys which have come since stand for in it."""
    from tim_jax.config import plugins

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


def compare_identity(recorded: dict[str, Any], config: ConfigDict, workdir: Any) -> None:
    """Raises ValueError, naming the first key that differs, if a workdir's recorded configuration is another run's."""
    from tim_jax.config import recorded_plugins

    recorded_plugins.compare(recorded.get("plugin", ()), config.plugin, workdir)
    before, now = identity(recorded), json.loads(json.dumps(identity(config)))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise ValueError(
                f"{key} is {now.get(key)!r}; it must be {before.get(key)!r}, since {workdir} holds a run with that: "
                "give another workdir otherwise"
            )
