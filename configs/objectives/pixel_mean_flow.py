"""Pixel MeanFlow on the digits (arXiv 2601.22158): improved MeanFlow by a network whose outputs are images.

    u = (x_t − x̂)/max(t, 0.05), and the velocity head alike

What one jump makes of noise is x̂ itself. The paper's perceptual term needs pretrained encoders and is left out, see
`objective.perceptual`, and so is noise with a standard deviation above 1.

Published, ImageNet 256 and 512 in pixels, with the perceptual term, FID at 1 evaluation: 2.22 and 2.48.

Launch: python -m tim_jax.train --config=configs/objectives/pixel_mean_flow.py --workdir=runs/pixel_mean_flow
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").network()
    config.objective.name = "improved_mean_flow"
    config.transport.prediction = "x"
    config.transport.prediction_clip = 0.05
    return config
