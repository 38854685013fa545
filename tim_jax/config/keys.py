"""The keys of a configuration, and what to say of one that is none.

Their names are those of configs/base.py, so that a mistyped one is seen before anything is imported that takes time.
"""

import dataclasses
import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from tim_jax.config import loading, renames

FREE = ("ema",)  # sections whose keys are names that anybody may give


@dataclasses.dataclass(frozen=True)
class Unread:
    """Keys that a command does not read, for `key in unread`.

    Attributes:
        sections: whose keys they are; or single keys.
        but: keys of those sections that it does read.
    """

    sections: tuple[str, ...] = ()
    but: tuple[str, ...] = ()

    def __contains__(self, key: str) -> bool:
        return key not in self.but and any(f"{key}.".startswith(f"{section}.") for section in self.sections)


# What no command of a trained run reads, but for where its programs are kept; and what says which images are held out.
# Commands of a configuration, such as inspect, take all that makes it, also where they look at a part alone.
TRAINING = (
    "checkpoint", "evaluation.periodic", "mesh.accumulation", "optimizer", "posthoc_ema", "start", "teacher", "training"
)  # fmt: skip
PROGRAMS = ("training.compilation_cache", "training.compilation_cache_gib")
HELD_OUT = ("evaluation.held_out", "evaluation.source", "evaluation.path")


def unread(*sections: str, but: tuple[str, ...] = ()) -> Unread:
    """The keys that a command of a trained run does not read: those of training and of further sections.

    Args:
        sections: further ones, or single keys.
        but: keys of those that it does read.
    """
    return Unread((*TRAINING, *sections), (*PROGRAMS, *but))


BY_DRAWING = unread("evaluation", but=HELD_OUT)  # by commands that draw samples and measure nothing of them


def known_keys() -> list[str]:
    """All keys; those of FREE sections are the examples of configs/base.py."""
    return list(flatten(loading.load("base").get_config()))


def check_given(given: Iterable[str], known: Collection[str]) -> None:
    """Raises ValueError for a key of the command line that is none of the known ones, with the right one."""
    for key in given:
        section, _, name = key.partition(".")
        if key not in known and not (section in FREE and name and "." not in name):
            raise ValueError(f"--config.{key}: no such key; {hint(key, known, '--config.')}")


def check_read(given: Mapping[str, str], unread: Unread, command: str) -> None:
    """Raises ValueError for a key of the command line, {"section.key": text}, that the command does not read."""
    for key, text in given.items():
        if key in unread:
            raise ValueError(f"--config.{key} is {text}; it must be left out with {command}, which does not read it")


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
