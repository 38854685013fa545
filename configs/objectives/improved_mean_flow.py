"""Improved MeanFlow on the digits (arXiv 2512.02012).

    ‖F + (t − r) sg D_u F − v_g‖² + ‖u − v_g‖², u the velocity head, v_g guided by a scale that is an input

Sample with python -m tim_jax.sample … --guidance=3, which costs one evaluation a step here.

Launch: python -m tim_jax.train --config=configs/objectives/improved_mean_flow.py --workdir=runs/improved_mean_flow
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").network()
    config.objective.name = "improved_mean_flow"
    return config
