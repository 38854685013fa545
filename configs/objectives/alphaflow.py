"""α-Flow on the digits (arXiv 2510.20771).

    F* = sg[α v + (1 − α) F(x_s, s, r)], s = t − α (t − r), x_s = x_t − (t − s) v

α falls along a sigmoid over the run, from 1, where F* = v, to 0, where F* = v − (t − r) sg D_v F as in MeanFlow. With
γ = 25 and the clamp 0.005 it does so between 0.29 and 0.71 of the steps. Losses are α L/sg(L + 0.001) before.

Published, ImageNet 256, FID at 1 / 2 evaluations: α-Flow XL/2+ 2.58 / 2.15.

Launch: python -m tim_jax.train --config=configs/objectives/alphaflow.py --workdir=runs/alphaflow
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").network()
    config.objective.name = "alphaflow"
    config.objective.bootstrap.alpha.end_step = 0
    config.objective.bootstrap.alpha.end_share = 1.0
    return config
