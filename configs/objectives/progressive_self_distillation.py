"""Progressive self-distillation, PSD, on the digits (arXiv 2505.18825).

    f_{t→r}(x_t) = sg f_{s→r}(f_{t→s}(x_t)), s uniform in (r, t)

in a quarter of the examples, and flow matching in the others. It is `split_mean_flow` with t and r uniform and losses
e^{−u} L + u with u learned, which depends on t and r in the paper and on t here. `objective.bootstrap.split` "half" is
the paper's other variant.

Published, CIFAR-10: behind configs/objectives/lagrangian_self_distillation.py at every number of steps.

Launch: python -m tim_jax.train --config=configs/objectives/progressive_self_distillation.py --workdir=runs/psd
"""

from tim_jax.config import loading

CHANGES = {
    "objective.name": "split_mean_flow",
    "objective.learned_weight": True,
    "times.distribution": "uniform",
    "times.share_equal": 0.75,
}


def get_config():
    config = loading.load("digits").network()
    config.update_from_flattened_dict(CHANGES)
    return config
