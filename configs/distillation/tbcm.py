"""TBCM, trajectory-backward consistency without images, of flow matching on the digits.

    sCM distillation at states x_t of the teacher's own way from noise, eight of each

Paper: Image-Free Timestep Distillation via Continuous-Time Consistency. Of the digits only the labels are used.

Launch: python -m tim_jax.train --config=configs/digits_teacher.py --workdir=runs/digits_teacher
        python -m tim_jax.train --config=configs/distillation/tbcm.py --workdir=runs/tbcm_distilled
"""

from tim_jax.config import loading


def get_config():
    return loading.load("digits_teacher").student(
        {"objective.name": "tbcm", "objective.tangent.warmup_steps": 600, "start.reinitialise": ("log_variance_head",)}
    )
