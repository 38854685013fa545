"""MeanFlow that learns from flow matching, on the digits (arXiv 2505.13447).

    F* = v_T − (t − r) sg D_{v_T} F, v_T the velocity of the teacher

A quarter of the examples r ≠ t, each over sg(L + 0.001).

Launch: python -m tim_jax.train --config=configs/digits_teacher.py --workdir=runs/digits_teacher
        python -m tim_jax.train --config=configs/distillation/mean_flow.py --workdir=runs/mean_flow_distilled
"""

from tim_jax.config import loading


def get_config():
    return loading.load("digits_teacher").student({"objective.name": "mean_flow", "objective.velocity": "teacher"})
