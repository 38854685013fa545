"""TiM on the embedded 8×8 handwritten digits: minutes on two CPU cores.

Launch: bash launch/local.sh
"""

from tim_jax import config_files


def get_config():
    config = config_files.load("base").get_config()

    config.model.width = 128
    config.model.depth = 4
    config.model.heads = 4
    config.model.bottleneck = 64
    config.model.encoder_depth = 2
    config.model.patch_size = 4

    config.objective.adaptive_power = 0.0
    config.objective.direction = "image"

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 200

    config.ema.slow = 0.999

    config.training.steps = 5000
    config.training.sample_every = 1000
    config.training.sample_steps = (1, 8, 64)
    return config
