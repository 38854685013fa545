"""Flow matching on the embedded digits: the twin of configs/digits.py, with r = t in every row.

Same network, data and time: a step costs less without jumps, so that it takes more of them.
Launch: python -m tim_jax.train --config=configs/digits_flow_matching.py --workdir=runs/digits_flow_matching
"""

from tim_jax import config_files


def get_config():
    config = config_files.load("digits").network()

    config.objective.name = "flow_matching"

    config.optimizer.decay_steps = 4600
    config.training.steps = 4600
    return config
