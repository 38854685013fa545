"""Eulerian self-distillation, ESD, on the digits (arXiv 2505.18825).

    ∂_t f_{t→r}(x_t) + ∇f_{t→r}(x_t) v(x_t, t) = 0, v the network's own velocity F(x_t, t, t) for OT-FM

in a quarter of the examples, and flow matching in the others. For OT-FM F* = v − (t − r) sg D F, derived along the
network's own velocity, where MeanFlow has the data's. t and r are uniform, losses e^{−u} L + u with u learned.

In the paper the first v of F* is the network's own as well; here it is the data's, whose mean that is. The paper stops
the gradient of v and of ∇f v alone, so that ∂_t f keeps that of ∂F/∂t; here dF/dt is stopped as a whole
(`objective.tangent.differentiate_steps` would keep all of it). Its u depends on t and r, ours on t.

Published: Eulerian losses were unstable on images; configs/objectives/lagrangian_self_distillation.py has a score.

Launch: python -m tim_jax.train --config=configs/objectives/eulerian_self_distillation.py --workdir=runs/esd
"""

from tim_jax.config import loading

CHANGES = {
    "objective.name": "mean_flow",
    "objective.velocity": "online",
    "objective.adaptive.power": 0.0,
    "objective.learned_weight": True,
    "times.distribution": "uniform",
}


def get_config():
    config = loading.load("digits").network()
    config.update_from_flattened_dict(CHANGES)
    return config
