"""Inpainting of the embedded digits, trained: a rectangle of a third of the area is missing.

Stochastic interpolants with data-dependent couplings (arXiv 2310.03725): the noise end is the image with noise where
pixels are missing, and known pixels never move. The network sees image and mask as well; the class is dropped in half
of the examples.

Launch: python -m tim_jax.train --config=configs/digits_inpainting.py --workdir=runs/digits_inpainting
Then: python -m tim_jax.sample --workdir=runs/digits_inpainting --steps=1,4,16
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits_small").network()

    config.data.condition_dropout = 0.5

    config.objective.name = "flow_matching"
    config.objective.coupling.task = "inpainting"
    config.objective.coupling.missing = 0.35

    config.optimizer.learning_rate = 4e-3

    config.training.steps = 1000
    config.training.sample_steps = (1, 4, 16)
    return config
