"""The embedded digits with a very small network, whose whole checkpoint takes less than 2 MB.

Launch: python -m tim_jax.train --config=configs/digits_tiny.py --workdir=runs/digits_tiny
notebooks/digits/ holds a run of it, which the notebooks read. Data and loss are those of configs/digits.py.
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits_small").get_config()

    config.model.width = 40
    config.model.heads = 2
    config.model.depth = 2
    config.model.bottleneck = 16
    config.model.encoder_depth = 1

    config.optimizer.learning_rate = 2e-3

    config.ema.slow = 0.995

    config.training.steps = 4000
    config.training.log_every = 100

    config.checkpoint.keep = 1
    return config
