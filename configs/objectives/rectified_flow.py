"""Rectified flow on the digits: r = t, U-shaped times, pseudo-Huber loss (arXiv 2405.20320).

Launch: python -m tim_jax.train --config=configs/objectives/rectified_flow.py --workdir=runs/rectified_flow
"""

from tim_jax import config_files


def get_config():
    config = config_files.load("digits").network()
    config.objective.name = "rectified_flow"
    return config
