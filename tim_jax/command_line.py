"""What all command lines share: configurations with overrides, and errors of users as one line and exit code 2."""

import argparse
import ast
import contextlib
import difflib
import sys
from typing import Any

from ml_collections import ConfigDict

from tim_jax import config_files

DONE, FAILED, USER_ERROR, RESTART = 0, 1, 2, 75


@contextlib.contextmanager
def user_errors():
    """Within it, a ValueError is a user's: one line on standard error, exit code 2."""
    try:
        yield
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(USER_ERROR) from None


class Parser(argparse.ArgumentParser):
    """An argument parser that takes `--config.section.key=value` besides its own arguments."""

    def error(self, message: str):
        print(f"error: {message}; see --help", file=sys.stderr)
        raise SystemExit(USER_ERROR)

    def parse(self, argv: list[str] | None = None) -> tuple[argparse.Namespace, dict[str, str]]:
        """(arguments, {"section.key": text} overrides)."""
        args, rest = self.parse_known_args(argv)
        overrides = {}
        for given in rest:
            name, equals, value = given.partition("=")
            if not name.startswith("--config.") or not equals:
                options = [option for action in self._actions for option in action.option_strings]
                near = difflib.get_close_matches(name, options, n=1)
                hint = f"did you mean {near[0]}?" if near else "overrides are --config.section.key=value"
                self.error(f"{given}: no such argument; {hint}")
            overrides[name.removeprefix("--config.")] = value
        return args, overrides


def load_config(name: str, overrides: dict[str, str]) -> ConfigDict:
    """A configuration file's ConfigDict with overrides. Raises ValueError with one line."""
    module = config_files.load(name)
    if not hasattr(module, "get_config"):
        raise ValueError(f"--config={name}: has no function get_config")
    try:
        config = module.get_config()
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"--config={name}: {error}") from None
    return override(config, overrides)


def override(config: ConfigDict, overrides: dict[str, str]) -> ConfigDict:
    """The configuration with "section.key" texts read as the type that each key has. Raises ValueError."""
    config = ConfigDict(config.to_dict())
    known = _flat_keys(config)
    for key, text in overrides.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"--config.{key}: no such key; did you mean --config.{near}?")
        *sections, last = key.split(".")
        section = config
        for name in sections:
            section = section[name]
        section[last] = _read(key, text, section[last])
    return config


def _flat_keys(config: Any, prefix: str = "") -> list[str]:
    keys = []
    for name, value in config.items():
        keys += _flat_keys(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else [f"{prefix}{name}"]
    return keys


def _read(key: str, text: str, like: Any) -> Any:
    if isinstance(like, str):
        return text
    wrong = ValueError(f"--config.{key} is {text!r}; it must be a {type(like).__name__}, such as {like!r}")
    if isinstance(like, bool):
        if text.lower() not in ("true", "false"):
            raise wrong
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        raise wrong from None
    if isinstance(like, tuple):
        value = value if isinstance(value, tuple) else (value,)
    elif isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(like):
        raise wrong
    return value


def whole_numbers(name: str, text: str, least: int) -> list[int]:
    """A comma-separated list of whole numbers of at least `least`. Raises ValueError that names the argument."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--{name} is {text!r}; it must be whole numbers separated by commas, such as 1,4,32") from None
    for number in numbers:
        if number < least:
            raise ValueError(f"--{name} has {number}; each must be at least {least}")
    return numbers
