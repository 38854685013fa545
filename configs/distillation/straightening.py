"""Segmented straightening of flow matching on the digits: four Euler steps that end where the teacher's ODE does.

    F*(x̃_t, t) = (x_a − x_b)/(t_a − t_b) for OT-FM, x_b from x_a along the teacher's ODE, t in the segment (t_b, t_a]

With equal segments of time it is sequential reflow (SeqRF, arXiv 2402.06461; it begins with few segments and may go on
with `objective.segments.count` 1, reflow) and piecewise rectified flow (PeRFlow, arXiv 2405.07510, four segments, with
`teacher.guidance`). With the times that python -m tim_jax.grid finds for the teacher and writes to its grid.json as
`objective.segments.edges` it is the retraining of BOSS (arXiv 2312.16414). Samples take one step of Euler's method for
each segment, at the same times.

Launch: python -m tim_jax.train --config=configs/digits_teacher.py --workdir=runs/digits_teacher
        python -m tim_jax.train --config=configs/distillation/straightening.py --workdir=runs/straightened
"""

from tim_jax.config import loading


def get_config():
    return loading.load("digits_teacher").student({"objective.name": "straightening", "training.sample_steps": (4,)})
