"""Align Your Flow, Eulerian, of flow matching on the digits (arXiv 2506.14603).

    F* = F⁻ + g/(‖g‖ + 0.1), g = v_T − F⁻ − w (t − r) sg D_{v_T} F, v_T the velocity of the teacher, w up to 0.99

Launch: python -m tim_jax.train --config=configs/digits_teacher.py --workdir=runs/digits_teacher
        python -m tim_jax.train --config=configs/distillation/ayf_eulerian.py --workdir=runs/ayf_eulerian_distilled
"""

from tim_jax.config import loading


def get_config():
    return loading.load("digits_teacher").student(
        {"objective.name": "ayf_eulerian", "objective.tangent.warmup_steps": 600}
    )
