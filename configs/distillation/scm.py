"""sCM, consistency distillation, of flow matching on the digits (arXiv 2410.11081).

    F* = F⁻ + g/(‖g‖ + 0.1), g = [v_T − F⁻ − w t sg D_{v_T} F]/(1 + t²), r = 0 in every example

v_T is the velocity of the teacher, on whose transport, OT-FM, the student is; w warms up.

Launch: python -m tim_jax.train --config=configs/digits_teacher.py --workdir=runs/digits_teacher
        python -m tim_jax.train --config=configs/distillation/scm.py --workdir=runs/scm_distilled
"""

from tim_jax.config import loading


def get_config():
    return loading.load("digits_teacher").student(
        {
            "objective.name": "scm_distillation",
            "objective.tangent.warmup_steps": 600,
            "start.reinitialise": ("log_variance_head",),
        }
    )
