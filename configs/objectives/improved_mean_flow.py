"""Improved MeanFlow on the digits (arXiv 2512.02012).

    ‖F + (t − r) sg D_u F − v_g‖² + ‖u − v_g‖², u the velocity head, v_g guided by a scale that is an input

The published network has conditions as tokens in front of the image, here beside the modulation. There are 16 of them,
and 4 of an 8×8 digit: a step takes longer, and samples after as many steps are better (docs/comparing.md).

Published, ImageNet 256, FID at 1 evaluation: XL/2 1.72.

Sample with python -m tim_jax.sample … --guidance=3, which costs one evaluation a step here.

Launch: python -m tim_jax.train --config=configs/objectives/improved_mean_flow.py --workdir=runs/improved_mean_flow
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").network()

    config.model.class_tokens = 8
    config.model.guidance_tokens = 4

    config.objective.name = "improved_mean_flow"
    return config
