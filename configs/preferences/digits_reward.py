"""A reward beside TiM's own loss, on the digits: samples of one jump are to be brighter, their strokes thicker.

    L − λ r(f_{T→0}(ε)),   r the mean of the image's values

L on data is what keeps samples digits. λ trades one for the other, see docs/rewards.md, which has the figures.

Launch: python -m tim_jax.train --config=configs/digits.py --workdir=runs/digits
        python -m tim_jax.train --config=configs/preferences/digits_reward.py --workdir=runs/digits_reward
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").get_config()
    config.start.checkpoint = "runs/digits"

    config.objective.reward.weight = 0.3
    config.objective.reward.name = "brightness"

    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 20

    config.ema.slow = 0.95

    config.training.steps = 300
    config.training.sample_every = 0
    return config
