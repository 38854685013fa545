"""The path between data and noise, each with its own time distribution.

Launch: python -m tim_jax.ablate --config=configs/ablations/transports.py --workdir=runs/ablations/transports
Time: 8 variants × 3 seeds × about 75 seconds on two CPU cores, some 30 minutes in all.

Published (TiM, arXiv 2509.04394, ablation on ImageNet 256, B/4, 80 epochs), FID at 1 / 8 / 50 evaluations:
OT-FM 49.91 / 26.09 / 17.99, TrigFlow 67.32 / 25.14 / 18.28, EDM 53.64 / 37.01 / 24.06, VP 78.98 / 37.44 / 35.72.
To compare: the order at one evaluation and at many. Times are weighted alike, since the scales on which a weight could
measure them do not fit every transport. `pfgmpp` is EDM with the noise of PFGM++ (arXiv 2302.04265), in D = 128
dimensions more than the 64 of a digit. Published, CIFAR-10, FID at 35 evaluations: 1.91 with D = 2048, EDM itself 1.98.
`vp_shared_times` tells the network of an edge in place of small times (E-TSDM, arXiv 2306.11251).
"""

from tim_jax.ablation import Ablation
from tim_jax.config import loading


def get_ablation():
    base = loading.load("digits_small").get_config()
    base.objective.weight.kernel = "constant"
    return Ablation(
        base=base,
        variants={
            "ot_fm": {},
            "trigflow": {"transport.name": "trigflow"},
            "cosine": {"transport.name": "cosine"},
            "vp": {"transport.name": "vp"},
            "ve": {"transport.name": "ve"},
            "edm": {"transport.name": "edm", "transport.sigma_d": 0.75},
            "vp_shared_times": {"transport.name": "vp", "transport.shared_below": 0.1},
            "pfgmpp": {
                "transport.name": "edm",
                "transport.sigma_d": 0.75,
                "transport.augmented_dimensions": 128,
            },
        },
    )
