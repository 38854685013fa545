"""The smallest network that tests train and sample with, and configurations of it."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from tim_jax.codecs.settings import CodecSettings
from tim_jax.config.command_line import load_config
from tim_jax.config.examples import make_inputs
from tim_jax.config.sections import read
from tim_jax.data.sections import DataSettings, LoaderSettings
from tim_jax.data.settings import Inputs

# Texts, as they are typed. With rematerialisation, a step is traced twice and takes half as long again to compile.
TINY_NETWORK = {
    "model.width": "16", "model.depth": "1", "model.heads": "2", "model.bottleneck": "8", "model.encoder_depth": "1",
    "model.remat": "none",
}  # fmt: skip


def tiny_config(name: str = "digits", changes: Mapping[str, str] = {}) -> ConfigDict:
    """The configuration called `name` with the smallest network and further changes {key: text}."""
    return load_config(name, {**TINY_NETWORK, **changes})


def flags(changes: Mapping[str, object]) -> list[str]:
    """Changes {key: value} as they are typed at a command line."""
    return [f"--config.{key}={value}" for key, value in changes.items()]


def inputs_of(config: ConfigDict) -> Inputs:
    """What a configuration says of its data, without the rest of the run."""
    sections = ((DataSettings, config.data), (LoaderSettings, config.loader), (CodecSettings, config.codecs))
    return make_inputs(config, *(read(settings, section) for settings, section in sections))
