"""Which share of the examples has r = t (flow matching), and which r = T_min (jumps to the data).

Launch: python -m tim_jax.ablate --config=configs/ablations/shares.py --workdir=runs/ablations/shares
Time: 7 variants × 3 seeds × about 75 seconds on two CPU cores, some 25 minutes in all.

Published (TiM, arXiv 2509.04394, ablation on ImageNet 256, B/4, 80 epochs), FID at 1 / 8 / 50 evaluations for
r = t % / r = T_min %: 0/0 52.08 / 31.52 / 24.85, 50/10 47.46 / 24.62 / 17.10, 80/10 48.26 / 22.88 / 15.34. To compare:
that many steps gain from more examples at r = t, and one step hardly loses. An example's own velocity is used, not the
one predicted at r = t, which a network without such examples has not learnt.
"""

from tim_jax.ablation import Ablation
from tim_jax.config import loading


def get_ablation():
    base = loading.load("digits_small").get_config()
    base.objective.velocity = "data"
    shares = ((50, 10), (0, 0), (50, 0), (50, 40), (80, 0), (80, 10), (90, 5))
    return Ablation(
        base=base,
        variants={
            f"equal_{equal}_min_{least}": {"times.share_equal": equal / 100, "times.share_min": least / 100}
            for equal, least in shares
        },
    )
