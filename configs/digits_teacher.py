"""Flow matching on the digits as a teacher: digits_flow_matching.py with the learning rate of its students.

Samples are as good as at that file's rate. But weights trained at 8e-3 are so large that a student that starts
from them hardly moves: of TiM with the teacher's velocity, 500 steps gave a Fréchet distance at one evaluation of 5.45
at a rate of 1e-3, 4.93 at 4e-3 and 0.94 at 16e-3. From this teacher it is 0.395, at 1e-3.

Launch: python -m tim_jax.train --config=configs/digits_teacher.py --workdir=runs/digits_teacher
"""

from tim_jax.config import loading

WORKDIR = "runs/digits_teacher"


def student(changes, config=None, steps=1800):
    """A configuration of the same network that starts from this model's weights and learns from it (distillation/).

    changes: {"section.key": value} of config, which by default has the objective of configs/base.py.
    """
    config = config or loading.load("digits").network()
    config.start.checkpoint = config.teacher.checkpoint = WORKDIR

    config.optimizer.warmup_steps = 100

    config.ema.slow = 0.99

    config.training.steps = steps
    config.training.sample_every = steps // 3
    config.update_from_flattened_dict(changes)
    return config


def get_config():
    config = loading.load("digits_flow_matching").get_config()
    config.optimizer.learning_rate = loading.load("digits").network().optimizer.learning_rate
    return config
