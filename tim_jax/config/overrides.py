"""Keys that are given as text, such as --config.section.key=value."""

import copy

from ml_collections import ConfigDict

from tim_jax.config import plugins, values
from tim_jax.config.keys import check_given, flatten


def override(config: ConfigDict, overrides: dict[str, str]) -> ConfigDict:
    """The configuration with "section.key" texts read as the type that each key has. Raises ValueError."""
    config, overrides = copy.deepcopy(config), dict(overrides)
    if "plugin" in overrides:
        config.plugin = values.read("plugin", overrides.pop("plugin"))
    config = plugins.with_keys(config)  # before anything is looked up in a table
    check_given(overrides, flatten(config))
    for key, text in overrides.items():
        *sections, last = key.split(".")
        section = config
        for name in sections:
            section = section[name]
        with section.ignore_type():  # of a value that has been recorded, such as 1 for 1.0
            section[last] = values.read(key, text)
    return config
