"""A reward beside TiM's own loss, on the digits: samples of one jump are to be brighter, their strokes thicker.

    L − λ r(f_{T→0}(ε)),   r the mean of the image's values

L on data keeps samples digits, and λ trades one for the other: docs/rewards.md has the figures. notebooks/digits is the
run that the first command makes.

Launch: python -m tim_jax.train --config=configs/digits_tiny.py --workdir=runs/digits_tiny
        python -m tim_jax.train --config=configs/preferences/digits_reward.py --workdir=runs/digits_reward
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits_tiny").get_config()
    config.start.checkpoint = "runs/digits_tiny"

    config.objective.reward.weight = 0.005
    config.objective.reward.name = "brightness"

    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 20

    config.ema.slow = 0.95

    config.training.steps = 300
    return config
