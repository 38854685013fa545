"""Consistency trajectory models, without adversary, of flow matching on the digits (arXiv 2310.02279).

    f_{t→r}(x_t) = sg f_{u→r}(x_u), x_u from x_t by two steps of Heun's method along the teacher, u in (r, t)

Half of the examples learn the velocity from data.

Launch: python -m tim_jax.train --config=configs/digits_teacher.py --workdir=runs/digits_teacher
        python -m tim_jax.train --config=configs/distillation/ctm.py --workdir=runs/ctm_distilled
"""

from tim_jax.config import loading


def get_config():
    return loading.load("digits_teacher").student({"objective.name": "ctm"})
