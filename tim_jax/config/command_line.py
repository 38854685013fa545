"""What all command lines share: configurations with overrides, and errors of users as one line and exit code 2.

A command answers `--help` and what is mistyped at once: this module, and all that a command's file imports at its top,
is light. Rooms, and JAX with them, are imported by the function that runs the command once its line has been read.
"""

import argparse
import math
import sys
from typing import Any

from ml_collections import ConfigDict

from tim_jax.config import keys, loading
from tim_jax.system.user_errors import ArgumentParser, nearest
from tim_jax.system.user_errors import failures as failures
from tim_jax.system.user_errors import user_errors as user_errors

MOST = 10**6  # of numbers in a list, such as step counts
KEY = "--config."  # what keys of a configuration begin with


class Parser(ArgumentParser):
    """An argument parser that takes `--config.section.key=value` besides its own arguments."""

    def __init__(self, *, unread: keys.Unread = keys.Unread(), **settings: Any):
        """Args:
        unread: Keys that the command does not read, and refuses.
        settings: Those of argparse. The epilog says how keys are changed; "" where none can be.
        """
        self.unread = unread
        base = loading.folder() / "base.py"
        settings.setdefault("epilog", f"{KEY}SECTION.KEY=VALUE changes a key of the configuration; all are in {base}")
        super().__init__(**settings)

    def add_config(self, flag: str = "--config", **settings: Any) -> None:
        """Adds an argument that names a configuration, which must be there."""
        self.add_argument(flag, action=_Configuration, **settings)

    def parse(self, argv: list[str] | None = None) -> tuple[argparse.Namespace, dict[str, str]]:
        """(arguments, {"section.key": text} overrides). Keys are looked up, values are not."""
        words, overrides = self._split(sys.argv[1:] if argv is None else argv)
        args = self.parse_args(words)
        with user_errors():
            keys.check_given(self._of_package(args, overrides), keys.known_keys() if overrides else ())
            keys.check_read(overrides, self.unread, self.prog)
        return args, overrides

    def _of_package(self, args: argparse.Namespace, overrides: dict[str, str]) -> list[str]:
        """The keys that must be those of the package: those of `objective` may be a plugin's, which runs later."""
        name = getattr(args, "config", None)
        own = "plugin" in overrides or (name and loading.folder() not in loading.find(name).parents)
        return [key for key in overrides if not (own and key.startswith("objective."))]

    def _split(self, argv: list[str]) -> tuple[list[str], dict[str, str]]:
        """(words, overrides), which are written KEY=VALUE or KEY VALUE."""
        words: list[str] = []
        overrides: dict[str, str] = {}
        waiting = list(argv)
        while waiting:
            word = waiting.pop(0)
            key, equals, text = word.removeprefix(KEY).partition("=")
            if not word.startswith(KEY):
                words.append(word)
            elif equals:
                overrides[key] = text
            elif waiting and not waiting[0].startswith("--"):
                overrides[key] = waiting.pop(0)
            else:
                self.error(f"{word}: has no value; it must be {word}=VALUE")
        return words, overrides

    def hint(self, flag: str, rest: str) -> str:
        """What may have been meant by a flag that is none: a key that ends like it, a flag, or a key like it."""
        known, name = keys.known_keys(), flag.lstrip("-").replace("-", "_")
        ending = list(keys.ending(name, known))
        depth = min((key.count(".") for key in ending), default=0)
        meant = [f"{KEY}{key}{rest}" for key in ending if key.count(".") == depth]
        last = {key.rpartition(".")[2]: key for key in reversed(known)}
        meant = meant or [f"{one}{rest}" for one in nearest(flag, self.flags())]
        meant = meant or [f"{KEY}{key}{rest}" for one in nearest(name, last) for key in keys.ending(one, known)]
        return f"did you mean {' or '.join(meant)}?" if meant else f"keys are changed by {KEY}section.key=value"


class _Configuration(argparse.Action):
    """Stores the name of a configuration that can be found."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        with user_errors():
            loading.find(values, option_string or "--config")
        setattr(namespace, self.dest, values)


def load_config(name: str, overrides: dict[str, str]) -> ConfigDict:
    """A configuration file's ConfigDict with overrides. Raises ValueError with one line."""
    from tim_jax.config.overrides import override  # with JAX: the types of values are those of the dataclasses

    return override(read_file(name, "get_config"), overrides)


# What to say of a file that has this function in place of another.
TAKEN = {
    "it is an ablation, which tim-jax ablate takes": "get_ablation",
    "it is a configuration of one run, and ablations are in configs/ablations": "get_config",
}


def read_file(name: str, function: str) -> Any:
    """What a function of a configuration file returns. Raises ValueError with one line."""
    module = loading.load(name)
    if not hasattr(module, function):
        other = next((takes for takes, has in TAKEN.items() if hasattr(module, has)), "")
        hint = f"; {other}" if other else ""
        raise ValueError(f"--config={name}: has no function {function}{hint}")
    try:
        return getattr(module, function)()
    except ValueError:
        raise
    except Exception as error:  # of a file that a user wrote
        raise ValueError(f"--config={name}: {loading.said(error, loading.find(name))}") from error


def real_numbers(name: str, text: str, least: float) -> list[float]:
    """A comma-separated list of finite numbers of at least `least`. Raises ValueError that names the argument."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--{name} is {text!r}; it must be numbers such as 1,1.5,2") from None
    for number in numbers:
        if not least <= number < math.inf:
            raise ValueError(f"--{name} has {number:g}; each must be at least {least:g} and finite")
    return numbers


def words(name: str, text: str) -> list[str]:
    """A comma-separated list of words. Raises ValueError that names the argument."""
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise ValueError(f"--{name} is {text!r}; it must be words with commas between")
    return found


def intervals(name: str, text: str) -> list[tuple[float, float]]:
    """A comma-separated list of LOW:HIGH within [0, 1]. Raises ValueError that names the argument."""
    found = []
    for part in text.split(","):
        low, _, high = part.partition(":")
        try:
            found.append((float(low), float(high)))
        except ValueError:
            raise ValueError(f"--{name} has {part!r}; each must be LOW:HIGH, such as 0.1:0.8") from None
        if not 0 <= found[-1][0] <= found[-1][1] <= 1:
            raise ValueError(f"--{name} has {part!r}; its ends must be ordered and lie in [0, 1]")
    return found


def whole_numbers(name: str, text: str, least: int) -> list[int]:
    """A comma-separated list of whole numbers of at least `least`. Raises ValueError that names the argument."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--{name} is {text!r}; it must be whole numbers such as 1,4,32") from None
    for number in numbers:
        if number < least:
            raise ValueError(f"--{name} has {number}; each must be at least {least}")
        if number > MOST:
            raise ValueError(f"--{name} has {number}; each must be at most {MOST}")
    return numbers
