"""Modular MeanFlow on the digits (arXiv 2508.17426).

    ‖F + (t − r) SG_λ[D_v F] − v‖², λ from 0 to 1 over the run

Launch: python -m tim_jax.train --config=configs/objectives/modular_mean_flow.py --workdir=runs/modular_mean_flow
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").network()
    config.objective.name = "modular_mean_flow"
    config.objective.tangent.differentiate_steps = 3600
    return config
