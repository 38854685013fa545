"""Flow matching on the embedded digits: the twin of configs/digits.py, with r = t in every example.

Same network, data and time: a step costs less without jumps, so that it takes more of them. It is the teacher of the
configurations in distillation/.
Launch: python -m tim_jax.train --config=configs/digits_flow_matching.py --workdir=runs/digits_flow_matching
"""

from tim_jax.config import loading

WORKDIR = "runs/digits_flow_matching"


def student(changes, config=None, steps=1800):
    """A configuration of the same network that starts from this model's weights and learns from it (distillation/).

    changes: {"section.key": value} of config, which by default has the objective of configs/base.py.
    """
    config = config or loading.load("digits").network()
    config.start.checkpoint = config.teacher.checkpoint = WORKDIR

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100

    config.ema.slow = 0.99

    config.training.steps = steps
    config.training.sample_every = steps // 3
    config.update_from_flattened_dict(changes)
    return config


def get_config():
    config = loading.load("digits").network()

    config.objective.name = "flow_matching"

    config.optimizer.learning_rate = 8e-3

    config.training.steps = 4600
    return config
