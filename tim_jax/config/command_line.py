"""What all command lines share: configurations with overrides, and errors of users as one line and exit code 2."""

import argparse
import difflib
from typing import Any

from ml_collections import ConfigDict

from tim_jax.config import loading
from tim_jax.config.overrides import override
from tim_jax.system import logs
from tim_jax.system.user_errors import ArgumentParser
from tim_jax.system.user_errors import failures as failures
from tim_jax.system.user_errors import user_errors as user_errors

MOST = 10**6  # of numbers in a list, such as step counts


class Parser(ArgumentParser):
    """An argument parser that takes `--config.section.key=value` besides its own arguments."""

    def parse(self, argv: list[str] | None = None) -> tuple[argparse.Namespace, dict[str, str]]:
        """(arguments, {"section.key": text} overrides)."""
        logs.install()
        args, rest = self.parse_known_args(argv)
        overrides = {}
        for given in rest:
            name, equals, value = given.partition("=")
            if not name.startswith("--config.") or not equals:
                options = [option for action in self._actions for option in action.option_strings]
                near = [] if name.startswith("--config.") else difflib.get_close_matches(name, options, n=1)
                hint = f"did you mean {near[0]}?" if near else "overrides are --config.section.key=value"
                self.error(f"{given}: no such argument; {hint}")
            overrides[name.removeprefix("--config.")] = value
        return args, overrides


def load_config(name: str, overrides: dict[str, str]) -> ConfigDict:
    """A configuration file's ConfigDict with overrides. Raises ValueError with one line."""
    return override(read_file(name, "get_config"), overrides)


def read_file(name: str, function: str) -> Any:
    """What a function of a configuration file returns. Raises ValueError with one line."""
    module = loading.load(name)
    if not hasattr(module, function):
        raise ValueError(f"--config={name}: has no function {function}")
    try:
        return getattr(module, function)()
    except ValueError:
        raise
    except Exception as error:  # of a file that a user wrote
        raise ValueError(f"--config={name}: {loading.said(error, loading.find(name))}") from error


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
