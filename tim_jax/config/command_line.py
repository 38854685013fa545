"""What all command lines share: configurations with overrides, and errors of users as one line and exit code 2."""

import argparse
import contextlib
import difflib
import sys
from typing import Any

from ml_collections import ConfigDict

from tim_jax.config import loading
from tim_jax.config.overrides import override
from tim_jax.system import logs
from tim_jax.system.exit_codes import FAILED, USER_ERROR


@contextlib.contextmanager
def user_errors(kind: type[ValueError] = ValueError):
    """Within it, an error of that kind is a user's: one line on standard error, exit code 2."""
    try:
        yield
    except kind as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(USER_ERROR) from None


@contextlib.contextmanager
def failures(*kinds: type[Exception]):
    """Within it, errors of these kinds are a run's that cannot go on: one line on standard error, exit code 1."""
    try:
        yield
    except kinds as error:
        print(f"failed: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(FAILED) from None


class Parser(argparse.ArgumentParser):
    """An argument parser that takes `--config.section.key=value` besides its own arguments."""

    def error(self, message: str):
        print(f"error: {message}; see --help", file=sys.stderr)
        raise SystemExit(USER_ERROR)

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
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"--config={name}: {error}") from None


def whole_numbers(name: str, text: str, least: int) -> list[int]:
    """A comma-separated list of whole numbers of at least `least`. Raises ValueError that names the argument."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--{name} is {text!r}; it must be whole numbers such as 1,4,32") from None
    for number in numbers:
        if number < least:
            raise ValueError(f"--{name} has {number}; each must be at least {least}")
    return numbers
