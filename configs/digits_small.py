"""The embedded digits with a smaller network: what the ablations start from, about a minute on two CPU cores.

Launch: python -m tim_jax.train --config=configs/digits_small.py --workdir=runs/digits_small
Data, loss and schedule are those of configs/digits.py. A step takes 24 ms on two quiet cores.
"""

from tim_jax.config import loading


def smaller(config):
    config.model.width = 64
    config.model.depth = 3

    config.optimizer.warmup_steps = 100

    config.ema.slow = 0.99

    config.training.steps = 1500
    config.training.sample_every = 0
    config.training.log_every = 100
    return config


def network():
    """Data, network and optimizer, with the objective left as it is named in configs/base.py."""
    return smaller(loading.load("digits").network())


def get_config():
    return smaller(loading.load("digits").get_config())
