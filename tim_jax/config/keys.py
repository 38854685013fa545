"""The keys of a configuration, and what to say of one that is none.

Their names are those of configs/base.py, so that a mistyped one is seen before anything is imported that takes time.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from tim_jax.config import loading, renames

FREE = ("ema",)  # sections whose keys are names that anybody may give


def known_keys() -> list[str]:
    """All keys; those of FREE sections are the examples of configs/base.py."""
    return list(flatten(loading.load("base").get_config()))


def check_given(given: Iterable[str], known: Collection[str]) -> None:
    """Raises ValueError for a key of the command line that is none of the known ones, with the right one."""
    for key in given:
        section, _, name = key.partition(".")
        if key not in known and not (section in FREE and name and "." not in name):
            raise ValueError(f"--config.{key}: no such key; {hint(key, known, '--config.')}")


def hint(key: str, known: Iterable[str], before: str) -> str:
    """What to say of a key that is none: its new name, the keys that end as it does, or the nearest key."""
    if key in renames.KEYS:
        return f"renamed to {before}{renames.KEYS[key]}"
    near = ending(key, known) or difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"did you mean {' or '.join(f'{before}{one}' for one in near)}?"


def ending(name: str, known: Iterable[str]) -> list[str]:
    """The known keys whose last parts are that name, shortest first: for "steps" training.steps and others."""
    return sorted((key for key in known if f".{key}".endswith(f".{name}")), key=lambda key: (key.count("."), key))


def check_left(keys: Iterable[str], reason: str, given: Mapping[str, Any], right: Mapping[str, Any]) -> None:
    """Raises ValueError for one of these keys, which have no effect for that reason, if it is not at its default.

    Args:
        keys: "section.key".
        reason: what they have no effect where.
        given: the configuration, as `flatten` gives it.
        right: the default configuration, likewise.
    """
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
