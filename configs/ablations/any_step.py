"""Any-step quality on the digits: TiM and the other ways to learn jumps beside flow matching, at equal operations.

Launch: python -m tim_jax.ablate --config=configs/ablations/any_step.py --workdir=runs/ablations/any_step
Time: 6 variants × 3 seeds × about a minute of one core.

Published (TiM, arXiv 2509.04394, ablation on ImageNet 256, B/4, 80 epochs), FID at 1 / 8 / 50 evaluations:
flow matching 309.5 / 77.26 / 20.35, TiM 47.46 / 24.62 / 17.10. To compare: whether `tim_any_step` is within a standard
deviation of the best method at every number of evaluations. It has one configuration on all data; every method has the
learning rate that is best for it in a sweep (ablations/any_step_rates.py), by the mean logarithm of its distances.
"""

from tim_jax.ablation import Ablation
from tim_jax.config import loading

COUNTS = (1, 2, 4, 8, 16, 32, 64)
SWEEP = {"4": 4e-3, "8": 8e-3, "16": 16e-3, "32": 32e-3}  # by thousandths
# The best of these for each method, by one run each.
RATES = {
    "tim": 8e-3,
    "tim_any_step": 8e-3,
    "flow_matching": 16e-3,
    "mean_flow": 8e-3,
    "shortcut": 8e-3,
    "split_mean_flow": 16e-3,
}

METHODS = {
    "tim": {},
    "tim_any_step": loading.load("digits_any_step").ANY_STEP,
    "flow_matching": {"objective.name": "flow_matching", "times.shift_reference": 64.0},
    "mean_flow": {"objective.name": "mean_flow"},
    "shortcut": {"objective.name": "shortcut"},
    "split_mean_flow": {"objective.name": "split_mean_flow"},
}


def ablation(data, rates):
    """The comparison on the data of a configuration, with learning rates by method."""
    variants = {name: keys | {"optimizer.learning_rate": rates[name]} for name, keys in METHODS.items()}
    return Ablation(base=loading.load(data).network(), variants=variants, equal="flops", sampler_steps=COUNTS)


def sweep(data):
    """One run of every method with every learning rate, to choose rates by."""
    variants = {
        f"{name}_{label}": keys | {"optimizer.learning_rate": rate}
        for name, keys in METHODS.items()
        for label, rate in SWEEP.items()
    }
    return Ablation(base=loading.load(data).network(), variants=variants, equal="flops", seeds=1, sampler_steps=COUNTS)


def get_ablation():
    return ablation("digits_small", RATES)
