"""Keys that are given as text, such as --config.section.key=value."""

import ast
import copy
from typing import Any

from ml_collections import ConfigDict

from tim_jax.config.keys import flatten, hint
from tim_jax.config.sections import FREE


def override(config: ConfigDict, overrides: dict[str, str]) -> ConfigDict:
    """The configuration with "section.key" texts read as the type that each key has. Raises ValueError."""
    config = copy.deepcopy(config)
    known = list(flatten(config))
    for key, text in overrides.items():
        *sections, last = key.split(".")
        if sections and sections[0] in FREE:
            config[sections[0]][last] = _read(key, text, 0.0)
            continue
        if key not in known:
            raise ValueError(f"--config.{key}: no such key; {hint(key, known, '--config.')}")
        section = config
        for name in sections:
            section = section[name]
        kind = section.get_type(last)  # also of keys that are None
        section[last] = _read(key, text, kind() if section[last] is None else section[last])
    return config


def _read(key: str, text: str, like: Any) -> Any:
    if isinstance(like, str):
        return text
    wrong = ValueError(f"{key} is {text!r}; it must be a {type(like).__name__}, such as {like!r}")
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
