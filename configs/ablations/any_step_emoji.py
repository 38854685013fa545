"""Any-step quality on emoji at 16×16: the methods and the one TiM of ablations/any_step.py on the other data.

Launch: python -m tim_jax.ablate --config=configs/ablations/any_step_emoji.py --workdir=runs/ablations/any_step_emoji
Time: 6 variants × 3 seeds × about five minutes of one core.

Published: see ablations/any_step.py. To compare: whether `tim_any_step`, which is changed in nothing but its learning
rate, is within a standard deviation of the best method here as well.
"""

from tim_jax.config import loading

# None has been swept yet.
RATES = dict.fromkeys(("tim", "tim_any_step", "flow_matching", "mean_flow", "shortcut", "split_mean_flow"), 4e-3)


def get_ablation():
    return loading.load("ablations/any_step").ablation("emoji_small", RATES)
