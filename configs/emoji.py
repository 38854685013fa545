"""TiM on 2,900 emoji at 32×32, by their groups: about an hour on one CPU core.

Launch: python -m tim_jax.train --config=configs/emoji.py --workdir=runs/emoji
Then: python -m tim_jax.sample --workdir=runs/emoji --labels=animals,food,smileys --steps=1,2,4,8,16
With --config.data.height=64 --config.data.width=64 they are drawn at 64×64.

It needs the packages of an extra: pip install "tim-jax[emoji]". All emojis designed by OpenMoji – the open-source emoji
and icon project. License: CC BY-SA 4.0. Loss and schedule are those of configs/digits_any_step.py.
"""

from tim_jax.config import loading


def drawn(config):
    config.data.source = "emoji"
    config.data.height = 32
    config.data.width = 32
    config.data.channels = 3
    config.data.batch_size = 64

    config.model.num_classes = 9
    config.model.depth = 5

    config.optimizer.learning_rate = 5e-3

    config.ema.slow = 0.996

    config.training.steps = 2600
    config.training.sample_every = 650
    config.training.sample_steps = (1, 4, 16)
    return config


def network():
    """Data, network and optimizer, with the objective left as it is named in configs/base.py."""
    return drawn(loading.load("digits").network())


def get_config():
    return drawn(loading.load("digits_any_step").get_config())
