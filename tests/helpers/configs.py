"""The smallest network that tests train and sample with, and configurations of it."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from tim_jax.config.command_line import load_config

# Texts, as they are typed.
TINY_NETWORK = {
    "model.width": "16", "model.depth": "1", "model.heads": "2", "model.bottleneck": "8", "model.encoder_depth": "1",
}  # fmt: skip


def tiny_config(name: str = "digits", changes: Mapping[str, str] = {}) -> ConfigDict:
    """The configuration called `name` with the smallest network and further changes {key: text}."""
    return load_config(name, {**TINY_NETWORK, **changes})


def flags(changes: Mapping[str, object]) -> list[str]:
    """Changes {key: value} as they are typed at a command line."""
    return [f"--config.{key}={value}" for key, value in changes.items()]
