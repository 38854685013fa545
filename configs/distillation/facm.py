"""Flow-anchored consistency models of flow matching on the digits (arXiv 2507.03738).

    F* = F⁻ + (1 − √(1 − t)) clip(g, −1, 1), g = v_T − F⁻ − t sg D_{v_T} F, r = T_min in half of the examples

and v_T itself, with a cosine term, in the others.

Published, ImageNet 256, FID at 1 / 2 evaluations: FACM, of LightningDiT, 1.70 / 1.32.

Launch: python -m tim_jax.train --config=configs/digits_teacher.py --workdir=runs/digits_teacher
        python -m tim_jax.train --config=configs/distillation/facm.py --workdir=runs/facm_distilled
"""

from tim_jax.config import loading


def get_config():
    return loading.load("digits_teacher").student({"objective.name": "facm", "objective.velocity": "teacher"})
