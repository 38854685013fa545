"""Flow-anchored consistency models on the digits (arXiv 2507.03738), without a teacher.

    F* = F⁻ + (1 − √(1 − t)) clip(g, −1, 1), g = v − F⁻ − t sg D_v F, r = T_min in half of the examples

and flow matching with a cosine term in the others. configs/distillation/facm.py is the distillation of the paper.

Launch: python -m tim_jax.train --config=configs/objectives/facm.py --workdir=runs/facm
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").network()
    config.objective.name = "facm"
    return config
