"""Super-resolution of the embedded digits, trained: from 4×4 to 8×8, by a path that begins at the small image.

Stochastic interpolants with data-dependent couplings (arXiv 2310.03725): the noise end is m(x) + 0.2 ξ, m(x) the means
of squares of two by two pixels, which the network sees as well. The class is dropped in half of the examples.

Launch: python -m tim_jax.train --config=configs/digits_super_resolution.py --workdir=runs/digits_super_resolution
Then: python -m tim_jax.sample --workdir=runs/digits_super_resolution --steps=1,4,16
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits_small").network()

    config.data.condition_dropout = 0.5

    config.objective.name = "flow_matching"
    config.objective.coupling.task = "super_resolution"
    config.objective.coupling.factor = 2
    config.objective.coupling.scale = 0.2

    config.optimizer.learning_rate = 4e-3

    config.training.steps = 1000
    config.training.sample_steps = (1, 4, 16)
    return config
