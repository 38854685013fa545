"""rCM, score-regularised consistency, of flow matching on the digits (arXiv 2510.08431).

    sCM distillation + λ ‖x̂ − sg(x̂ − (x̂_S − x̂_T)/m)‖², x̂ a sample of the student in few steps, noised again

x̂_T and x̂_S are what teacher and score make of it; the score is a network like the student that is trained along with it
on its samples, so that a step costs three or four of tim's.

Launch: python -m tim_jax.train --config=configs/digits_teacher.py --workdir=runs/digits_teacher
        python -m tim_jax.train --config=configs/distillation/rcm.py --workdir=runs/rcm_distilled
"""

from tim_jax.config import loading


def get_config():
    return loading.load("digits_teacher").student(
        {"objective.name": "rcm", "objective.tangent.warmup_steps": 300, "start.reinitialise": ("log_variance_head",)},
        steps=900,
    )
