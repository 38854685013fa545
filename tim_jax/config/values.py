"""The values of keys: their types, which are those of the dataclasses' fields, and paths; checked in this one place."""

import ast
import functools
import typing
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from tim_jax.codecs import packaged, stand_in
from tim_jax.config.keys import FREE
from tim_jax.config.sections import SECTIONS, SEED, Section, keys_of
from tim_jax.system import paths
from tim_jax.system.hub import SCHEME

MAX_WHOLE = 2**31  # whole numbers lie below it and not below its negative: those of devices have 32 bits
MAX_REAL = 3.4028234e38  # of float32, which devices compute in
SHOWN = 200  # characters of a value that an error shows

# Keys that hold paths → beginnings besides "~", and words that are no paths. Those of runs hold checkpoints.
RUNS = ("start.checkpoint", "checkpoint.resume", "teacher.checkpoint", "teacher.weak_checkpoint")
PATHS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "data.path": (paths.REMOTE, ()),
    "data.images": (paths.REMOTE, ()),
    "evaluation.path": (paths.REMOTE, ()),
    "evaluation.reference": (paths.REMOTE, ()),
    "evaluation.inception": (paths.REMOTE, ()),
    "evaluation.dinov2": ((SCHEME,), ()),
    "objective.reward.classifier": (paths.REMOTE, ()),
    "loader.directory": ((), ()),
    "checkpoint.local": ((), ()),
    "training.compilation_cache": (paths.REMOTE, ("auto",)),
    "codecs.autoencoder": ((SCHEME,), ()),
    "codecs.text_encoder": ((SCHEME,), (stand_in.NAME, *packaged.PACKAGES)),
    "codecs.image_encoder": ((SCHEME,), ()),
}


def checked(config: ConfigDict) -> ConfigDict:
    """The configuration with values of the types that its keys have: tuples for lists, floats for whole numbers.

    Raises ValueError, naming the key, for a value of another type and for a path that nothing here reads.
    """
    return ConfigDict(_checked("", config))


def _checked(prefix: str, section: ConfigDict) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in section.items():
        key = f"{prefix}{name}"
        if isinstance(value, ConfigDict):
            found[name] = _checked(f"{key}.", value)
        else:
            found[name] = None if value is None and key in placeholders() else conformed(key, value, type_of(key))
            check_path(key, found[name])
    return found


def check_path(key: str, value: Any) -> None:
    """Raises ValueError for the value of a key that holds paths and whose value is none; it need not be there."""
    if key in RUNS and value:
        paths.run_folder(value, key)
    if key in PATHS:
        schemes, words = PATHS[key]
        if value and value not in words:
            paths.given(value, key, schemes)
    if key == "data.mixture":
        for _, path, _ in value:
            if path:
                paths.given(path, key)


def read(key: str, text: str) -> Any:
    """The value that a text, such as that of --config.section.key=value, means for a key. Raises ValueError."""
    kind = type_of(key)
    if kind is str:
        return conformed(key, text, kind)
    if kind is bool:
        return conformed(key, {"true": True, "false": False}.get(text.lower(), text), kind)
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        value = text
    if key == "plugin" and isinstance(value, str):
        value = tuple(part.strip() for part in value.split(",") if part.strip())
    if typing.get_origin(kind) is tuple and not isinstance(value, tuple | list | str):
        value = (value,)
    return conformed(key, value, kind)


def conformed(key: str, value: Any, kind: Any) -> Any:
    """The value as one of that type. Raises ValueError, naming the key, where it is of another."""
    try:
        return _conformed(value, kind)
    except TypeError:
        shown = repr(value).encode("utf-8", "backslashreplace").decode()
        shown = shown if len(shown) <= SHOWN else f"{shown[: SHOWN - 1]}…"
        raise ValueError(f"{key} is {shown}; it must be {described(kind)}") from None


def _conformed(value: Any, kind: Any) -> Any:
    """The same, with TypeError."""
    if typing.get_origin(kind) is typing.Union:
        number, word = typing.get_args(kind)
        return value if value in typing.get_args(word) else _conformed(value, number)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, tuple | list):
            raise TypeError
        kinds = typing.get_args(kind)
        if kinds[-1] is Ellipsis:
            return tuple(_conformed(one, kinds[0]) for one in value)
        if len(value) != len(kinds):
            raise TypeError
        return tuple(_conformed(one, each) for one, each in zip(value, kinds, strict=True))
    if kind is float and type(value) is int:
        try:
            value = float(value)
        except OverflowError:
            raise TypeError from None
    if type(value) is not kind:
        raise TypeError
    if kind is int and not -MAX_WHOLE <= value < 2 * MAX_WHOLE:  # seeds have 32 bits without a sign
        raise TypeError
    if kind is float and not abs(value) <= MAX_REAL:
        raise TypeError
    if kind is str and any(unicodedata.category(letter) in paths.UNFIT for letter in value):
        raise TypeError
    return value


def described(kind: Any) -> str:
    """A type in words."""
    if typing.get_origin(kind) is typing.Union:
        number, word = typing.get_args(kind)
        return f"{described(number)}, or {' or '.join(map(repr, typing.get_args(word)))}"
    if typing.get_origin(kind) is not tuple:
        return {
            int: "a whole number (int) of at most 32 bits",
            float: "a finite number (float)",
            bool: "True or False (bool)",
            str: "a text (str) in UTF-8 without control characters",
        }[kind]
    return f"a tuple such as {example(kind)!r}, of {' and '.join(dict.fromkeys(_leaves(kind)))}, or ()"


def _leaves(kind: Any) -> Iterator[str]:
    for one in typing.get_args(kind):
        if typing.get_origin(one) is tuple:
            yield from _leaves(one)
        elif one is not Ellipsis:
            yield {int: "whole numbers (int)", float: "finite numbers (float)", str: "texts (str)"}[one]


def example(kind: Any) -> Any:
    """A value of that type, for errors."""
    if typing.get_origin(kind) is not tuple:
        return {int: 8, float: 0.5, bool: False, str: "name"}[kind]
    kinds = typing.get_args(kind)
    return (example(kinds[0]),) if kinds[-1] is Ellipsis else tuple(map(example, kinds))


def type_of(key: str) -> Any:
    """The type of a key: bool, int, float, str, a tuple of those and of tuples, or a number or a Literal."""
    return float if key.split(".")[0] in FREE else types()[key]


@functools.cache
def types() -> dict[str, Any]:
    """The types of all keys but those of FREE sections, by "section.key"."""
    found: dict[str, Any] = {"seed": type(SEED[0]), "plugin": tuple[str, ...]}
    for name, section in SECTIONS.items():
        found |= types_of(name, section.kinds)
    return found


def types_of(section: str, kinds: tuple[type, ...]) -> dict[str, Any]:
    """The types of the keys that dataclasses define in a section, by "section.key"."""
    return _types(f"{section}.", kinds, SECTIONS[section])


def _types(prefix: str, kinds: tuple[type, ...], section: Section) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in keys_of(*kinds):
        if key.name in section.omit:
            continue
        if key.group:
            found |= _types(f"{prefix}{key.name}.", (key.group,), section._replace(omit=()))
        else:
            found[f"{prefix}{key.name}"] = type(section.defaults[key.name]) if key.type is Any else key.type
    return found


@functools.cache
def placeholders() -> frozenset[str]:
    """The keys that may be None: as the named objective has them."""
    names = tuple(f"{name}." for name, section in SECTIONS.items() if section.placeholders)
    return frozenset(key for key in types() if key.startswith(names))
