"""Transition models that learn from flow matching, on the digits (arXiv 2509.04394).

    F* = v_T − (t − r) sg D_{v_T} F, v_T the velocity of the teacher at x_t in place of ε − x

The objective is that of configs/digits.py, but for the velocity.

Launch: python -m tim_jax.train --config=configs/digits_teacher.py --workdir=runs/digits_teacher
        python -m tim_jax.train --config=configs/distillation/tim.py --workdir=runs/tim_distilled
"""

from tim_jax.config import loading


def get_config():
    return loading.load("digits_teacher").student(
        {"objective.velocity": "teacher"}, loading.load("digits").get_config()
    )
