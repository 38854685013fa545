"""Flow matching on the embedded digits: the twin of configs/digits.py, with r = t in every row.

Same network, data and time: a step costs less without jumps, so that it takes more of them.
Launch: python -m tim_jax.train --config=configs/digits_flow_matching.py --workdir=runs/digits_flow_matching
"""

from tim_jax import config_files


def get_config():
    config = config_files.load("digits").get_config()

    config.times.share_equal = 1.0
    config.times.share_min = 0.0
    config.objective.velocity = "data"
    config.objective.weight_kernel = "constant"

    config.optimizer.decay_steps = 4600
    config.training.steps = 4600
    return config
