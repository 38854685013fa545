"""Align Your Flow, Lagrangian, of flow matching on the digits (arXiv 2506.14603).

    F* = F⁻ + g/(‖g‖ + 0.1), g = v_T(f⁻_{t→r}(x_t), r) − F⁻ + w (t − r) sg ∂F/∂r, so that d f_{t→r}/dr = v_T(f_{t→r}, r)

Launch: python -m tim_jax.train --config=configs/digits_teacher.py --workdir=runs/digits_teacher
        python -m tim_jax.train --config=configs/distillation/ayf_lagrangian.py --workdir=runs/ayf_lagrangian_distilled
"""

from tim_jax.config import loading


def get_config():
    return loading.load("digits_teacher").student(
        {"objective.name": "ayf_lagrangian", "objective.tangent.warmup_steps": 600}
    )
