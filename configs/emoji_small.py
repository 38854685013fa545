"""Emoji at 16×16, by their groups, with a small network: what ablations start from beside configs/digits_small.py.

Launch: python -m tim_jax.train --config=configs/emoji_small.py --workdir=runs/emoji_small
A step takes 65 to 85 ms on one core and a run a minute and a half, so that two cores train two variants at once.
It needs the packages of an extra: pip install "tim-jax[emoji]". All emojis designed by OpenMoji – the open-source emoji
and icon project. License: CC BY-SA 4.0. Loss and schedule are those of configs/digits.py.
"""

from tim_jax.config import loading


def smaller(config):
    config.data.height = 16
    config.data.width = 16

    config.model.width = 96
    config.model.depth = 3
    config.model.heads = 3

    config.optimizer.warmup_steps = 100

    config.ema.slow = 0.99

    config.training.steps = 1000
    config.training.sample_every = 0
    config.training.log_every = 100
    return config


def network():
    """Data, network and optimizer, with the objective left as it is named in configs/base.py."""
    return smaller(loading.load("emoji").network())


def get_config():
    return smaller(loading.load("emoji").get_config())
