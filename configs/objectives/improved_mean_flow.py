"""Improved MeanFlow on the digits (arXiv 2512.02012).

    ‖F + (t − r) sg D_u F − v_g‖² + ‖u − v_g‖², u the velocity head, v_g guided by a scale that is an input

The published network has conditions as tokens: --config.model.class_tokens=8 --config.model.guidance_tokens=4 puts them
in front of the image, here beside the modulation; on 8×8 digits, of 4 tokens, that is most of a step.
docs/comparing.md says why this objective is behind MeanFlow on the digits.

Published, ImageNet 256, FID at 1 evaluation: XL/2 1.72.

Sample with python -m tim_jax.sample … --guidance=3, which costs one evaluation a step here.

Launch: python -m tim_jax.train --config=configs/objectives/improved_mean_flow.py --workdir=runs/improved_mean_flow
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").network()
    config.objective.name = "improved_mean_flow"
    return config
