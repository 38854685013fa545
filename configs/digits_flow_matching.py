"""Flow matching on the embedded digits: the twin of configs/digits.py, with r = t in every example.

Same network, data and time: a step costs less without jumps, so that it takes more of them. Its twin
digits_teacher.py teaches in distillation/.
Launch: python -m tim_jax.train --config=configs/digits_flow_matching.py --workdir=runs/digits_flow_matching
"""

from tim_jax.config import loading

WORKDIR = "runs/digits_flow_matching"


def get_config():
    config = loading.load("digits").network()

    config.objective.name = "flow_matching"

    config.optimizer.learning_rate = 8e-3

    config.training.steps = 4600
    return config
