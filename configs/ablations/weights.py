"""How examples are weighted: by their interval, by their own error, and the direction term.

Launch: python -m tim_jax.ablate --config=configs/ablations/weights.py --workdir=runs/ablations/weights
Time: 8 variants × 3 seeds × about 75 seconds on two CPU cores, some 30 minutes in all.

Published (TiM, arXiv 2509.04394, ablation on ImageNet 256, B/4, 80 epochs), FID at 1 / 8 / 50 evaluations:
48.30 / 25.05 / 17.43 without a weight by the interval, 47.46 / 24.62 / 17.10 with `sqrt` on the scale tan t. To
compare: `constant` with `sqrt`, and the price of the two published terms that configs/digits.py leaves out.
"""

from tim_jax.ablation import Ablation
from tim_jax.config import loading


def get_ablation():
    base = loading.load("digits_small").get_config()
    base.objective.weight.kernel = "sqrt"
    return Ablation(
        base=base,
        variants={
            "sqrt": {},
            "constant": {"objective.weight.kernel": "constant"},
            "reciprocal": {"objective.weight.kernel": "reciprocal"},
            "square": {"objective.weight.kernel": "square"},
            "soft_min_snr": {"objective.weight.kernel": "soft_min_snr"},
            "sqrt_of_time": {"objective.weight.scale": "time"},
            "own_error": {"objective.adaptive.power": 1.0},
            "direction": {"objective.direction": "image"},
        },
    )
