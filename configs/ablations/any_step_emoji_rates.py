"""Learning rates for ablations/any_step_emoji.py: every method with four of them, one run each, on emoji.

Launch: python -m tim_jax.ablate --config=configs/ablations/any_step_emoji_rates.py --workdir=runs/ablations/rates
Time: 24 runs, each about three minutes of one core.

Published: the papers use 1e-4 to 2e-4 for networks a thousand times as large. To compare: the mean logarithm of a
variant's distances over all numbers of evaluations, by which each method's rate was chosen.
"""

from tim_jax.config import loading


def get_ablation():
    return loading.load("ablations/any_step").sweep("emoji_small")
