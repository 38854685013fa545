"""Reflow of the flow-matching digits: rectified flow once more, on pairs of noise and sample that the model made.

Paths ε → x̂(ε) of a flow do not cross, so that for pairs, with x_t = (1 − t) x̂ + t ε,

    L = E ‖F(x_t, t, t) − (ε − x̂(ε))‖²

has much less variance left in its target than with independent noise: the flow that is learned is straighter, has the
same marginals, and needs fewer steps (arXiv 2209.03003). Times are U-shaped and the loss is the pseudo-Huber one of
arXiv 2405.20320; the weights go on from the model's own.

Launch: python -m tim_jax.train --config=configs/digits_teacher.py --workdir=runs/digits_teacher
        python -m tim_jax.pairs --workdir=runs/digits_teacher --out=runs/digits_pairs --examples=20000 --steps=32
        python -m tim_jax.train --config=configs/distillation/reflow.py --workdir=runs/reflow
"""

from tim_jax.config import loading

WORKDIR = "runs/reflow"


def get_config():
    config = loading.load("digits").network()
    config.objective.name = "rectified_flow"

    config.data.source = "shards"
    config.data.path = "runs/digits_pairs"
    config.data.paired_noise = True
    config.data.condition_dropout = 0.0  # a pair belongs to its label

    config.start.checkpoint = "runs/digits_teacher"

    config.evaluation.source = "digits"
    return config
