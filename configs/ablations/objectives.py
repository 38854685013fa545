"""What is learnt: transitions against flow matching, with the same network, data and time.

Launch: python -m tim_jax.ablate --config=configs/ablations/objectives.py --workdir=runs/ablations/objectives

Published (TiM, arXiv 2509.04394, ablation on ImageNet 256, B/4, 80 epochs), FID at 1 / 8 / 50 evaluations:
flow matching 309.5 / 77.26 / 20.35, TiM 47.46 / 24.62 / 17.10. To compare: how far flow matching falls behind at few
evaluations, and whether it is ahead at many.
"""

from tim_jax import config_files
from tim_jax.ablation import Ablation

FLOW_MATCHING = {
    "times.share_equal": 1.0,
    "times.share_min": 0.0,
    "objective.velocity": "data",
    "objective.weight_kernel": "constant",
}


def get_ablation():
    return Ablation(
        base=config_files.load("digits_small").get_config(),
        variants={
            "tim": {},
            "flow_matching": FLOW_MATCHING,
        },
    )
