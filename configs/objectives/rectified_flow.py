"""Rectified flow on the digits: r = t, U-shaped times, pseudo-Huber loss (arXiv 2405.20320).

Launch: python -m tim_jax.train --config=configs/objectives/rectified_flow.py --workdir=runs/rectified_flow
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").network()
    config.objective.name = "rectified_flow"
    return config
