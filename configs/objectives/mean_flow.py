"""MeanFlow on the digits (arXiv 2505.13447).

    F* = v − (t − r) sg D_v F, a quarter of the examples r ≠ t, each example over sg(L + 0.001)

Launch: python -m tim_jax.train --config=configs/objectives/mean_flow.py --workdir=runs/mean_flow
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").network()
    config.objective.name = "mean_flow"
    return config
