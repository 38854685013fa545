"""Any-step quality on emoji at 16×16: the methods and the one TiM of ablations/any_step.py on the other data.

Launch: python -m tim_jax.ablate --config=configs/ablations/any_step_emoji.py --workdir=runs/ablations/any_step_emoji
Time: 6 variants × 3 seeds × about three minutes of one core, of which half is sampling.

Published: see ablations/any_step.py. To compare: whether `tim_any_step`, which is changed in nothing but its learning
rate, is within a standard deviation of the best method here as well.
"""

from tim_jax.config import loading

# The best for each method of those in ablations/any_step.py that were tried: docs/how_good.md says which.
RATES = {
    "tim": 8e-3,
    "tim_any_step": 16e-3,
    "flow_matching": 16e-3,
    "mean_flow": 16e-3,
    "shortcut": 8e-3,
    "split_mean_flow": 8e-3,
}


def get_ablation():
    return loading.load("ablations/any_step").ablation("emoji_small", RATES)
