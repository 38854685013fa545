"""SplitMeanFlow on the digits (arXiv 2507.16884).

    F* = sg[(1 − λ) F(x_s, s, r) + λ F(x_t, t, s)], s = (1 − λ) t + λ r

Launch: python -m tim_jax.train --config=configs/objectives/split_mean_flow.py --workdir=runs/split_mean_flow
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").network()
    config.objective.name = "split_mean_flow"
    return config
