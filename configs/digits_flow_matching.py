"""Flow matching on the embedded digits: as configs/digits.py, but with r = t in every example.

Network, data and training time are the same: a step without jumps costs less, so that there are more of them. The
teacher of the configurations in distillation/ is digits_teacher.py.
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
