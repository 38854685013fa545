"""SlimFlow: reflow of the flow-matching digits into a smaller network, whose pairs set in slowly (arXiv 2407.12718).

    ε' = √(1 − β²) ε + β ξ,   L = E ‖F(x_t, t, t) − (ε' − x̂(ε))‖² for OT-FM, x_t = (1 − t) x̂(ε) + t ε'

Weights of the teacher do not fit a smaller network (`model`). It therefore begins with β = 1, flow matching, and goes
over to the teacher's pairs, β = 0, in half of the steps; β = (1 + cos πu)/2.

The published second part distils one step, as configs/distillation/instaflow.py does with `start.checkpoint` and
`data.path` of this run; the term by which a straightened flow guides it there is left out here.

Published, CIFAR-10, FID of one step: 5.02 with 15.7 million parameters.

Launch: python -m tim_jax.train --config=configs/digits_teacher.py --workdir=runs/digits_teacher
        python -m tim_jax.pairs --workdir=runs/digits_teacher --out=runs/digits_pairs --examples=20000 --steps=32
        python -m tim_jax.train --config=configs/distillation/slimflow.py --workdir=runs/slimflow
"""

from tim_jax.config import loading

CHANGES = {
    "objective.name": "flow_matching",
    "times.distribution": "uniform",
    "objective.refresh.schedule": "cosine",
    "objective.refresh.end_share": 0.5,
}


def get_config():
    config = loading.load("distillation/reflow").get_config()
    config.start.checkpoint = ""
    config.model.width = 64
    config.model.depth = 3
    config.model.bottleneck = 32
    config.update_from_flattened_dict(CHANGES)
    return config
