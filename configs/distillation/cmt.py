"""CMT, mid-training on the ends of trajectories, of flow matching on the digits (arXiv 2509.24526).

    F(x_i, t_i, T_min) = (x_end − A x_i)/B at eight states x_i of a trajectory of the teacher, which ends in x_end

It is a start for any objective of jumps, which then needs fewer steps: a regression, without tangents.

Published, FID at 2 evaluations: ImageNet 64 1.32 and 512 1.84, after ECT with up to 98 % less data and GPU time; at 1
evaluation ImageNet 256 3.34, after MeanFlow in half of its time.

Launch: python -m tim_jax.train --config=configs/digits_teacher.py --workdir=runs/digits_teacher
        python -m tim_jax.train --config=configs/distillation/cmt.py --workdir=runs/cmt
Then:   python -m tim_jax.train --config=configs/objectives/mean_flow.py --workdir=runs/cmt_mean_flow \
            --config.start.checkpoint=runs/cmt
"""

from tim_jax.config import loading


def get_config():
    return loading.load("digits_teacher").student({"objective.name": "cmt"}, steps=900)
