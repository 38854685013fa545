"""What the network knows of the interval: what conditions it, by which embedder, and whether attention sees it.

Launch: python -m tim_jax.ablate --config=configs/ablations/architecture.py --workdir=runs/ablations/architecture
Time: 7 variants × 3 seeds × about 75 seconds on two CPU cores, some 25 minutes in all.

Published (TiM, arXiv 2509.04394, ablation on ImageNet 256, B/4, 80 epochs), FID at 1 / 8 / 50 evaluations:
without both changes 49.91 / 26.09 / 17.99, with an interval embedder of its own and interval-aware attention
48.30 / 25.05 / 17.43. To compare: `plain` with `both`, and which of the two changes brings it.
The second half keeps both and changes what the interval's embedder is given.
"""

from tim_jax.ablation import Ablation
from tim_jax.config import loading

NO_EMBEDDER = {"model.separate_interval_embedder": False}
NO_ATTENTION = {"model.interval_aware": False}


def get_ablation():
    return Ablation(
        base=loading.load("digits_small").get_config(),
        variants={
            "both": {},
            "plain": NO_EMBEDDER | NO_ATTENTION,
            "embedder_only": NO_ATTENTION,
            "attention_only": NO_EMBEDDER,
            "given_r": {"model.conditioning": "r"},
            "given_t_r": {"model.conditioning": "t,r"},
            "given_t_interval": {"model.conditioning": "t,t-r"},
        },
    )
