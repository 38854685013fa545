"""Keys that are given as text, such as --config.section.key=value."""

import copy

from ml_collections import ConfigDict

from tim_jax.config import plugins, values
from tim_jax.config.keys import flatten, hint
from tim_jax.config.sections import FREE


def override(config: ConfigDict, overrides: dict[str, str]) -> ConfigDict:
    """The configuration with "section.key" texts read as the type that each key has. Raises ValueError."""
    config, overrides = copy.deepcopy(config), dict(overrides)
    if "plugin" in overrides:
        config.plugin = values.read("plugin", overrides.pop("plugin"))
    config = plugins.with_keys(config)  # before anything is looked up in a table
    known = set(flatten(config))
    for key, text in overrides.items():
        *sections, last = key.split(".")
        free = len(sections) == 1 and sections[0] in FREE
        if not free and key not in known:
            raise ValueError(f"--config.{key}: no such key; {hint(key, known, '--config.')}")
        section = config
        for name in sections:
            section = section[name]
        with section.ignore_type():  # of a value that has been recorded, such as 1 for 1.0
            section[last] = values.read(key, text)
    return config
