"""Transition models as published (arXiv 2509.04394), on the digits.

    F* = ε − x − (t − r) dF⁻/dt

configs/digits.py has the settings that suit this data better.

Launch: python -m tim_jax.train --config=configs/objectives/tim.py --workdir=runs/tim
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").network()
    config.objective.name = "tim"
    return config
