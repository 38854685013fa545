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
SWEEP = {"2": 2e-3, "4": 4e-3, "8": 8e-3, "16": 16e-3}  # by thousandths
# The best of these by method: so far `tim_any_step` and `flow_matching` have been swept, and those up to 8e-3.
RATES = dict.fromkeys(("tim", "tim_any_step", "flow_matching", "mean_flow", "shortcut", "split_mean_flow"), 8e-3)


def any_step(config):
    """{"section.key": value} of what configs/digits.py changes in TiM, which is the same on all data."""
    parts = {
        "times": ("share_equal", "share_min"),
        "objective": ("weight.kernel", "adaptive.power", "direction", "velocity", "tangent.warmup_share"),
    }
    return {f"{part}.{key}": config[part][key] for part, keys in parts.items() for key in keys}


def methods(tuned):
    """{name: {"section.key": value}} of the methods, of which `tuned` is the configuration of this project's TiM."""
    return {
        "tim": {},
        "tim_any_step": any_step(tuned),
        "flow_matching": {"objective.name": "flow_matching"},
        "mean_flow": {"objective.name": "mean_flow"},
        "shortcut": {"objective.name": "shortcut"},
        "split_mean_flow": {"objective.name": "split_mean_flow"},
    }


def ablation(data, rates):
    """The comparison on the data of a configuration, with learning rates by method."""
    module = loading.load(data)
    chosen = {name: {"optimizer.learning_rate": rate} for name, rate in rates.items()}
    variants = {name: keys | chosen.get(name, {}) for name, keys in methods(module.get_config()).items()}
    return Ablation(base=module.network(), variants=variants, equal="flops", sampler_steps=COUNTS)


def sweep(data):
    """One run of every method with every learning rate, to choose RATES by."""
    module = loading.load(data)
    variants = {
        f"{name}_{label}": keys | {"optimizer.learning_rate": rate}
        for name, keys in methods(module.get_config()).items()
        for label, rate in SWEEP.items()
    }
    return Ablation(base=module.network(), variants=variants, equal="flops", seeds=1, sampler_steps=COUNTS)


def get_ablation():
    return ablation("digits_small", RATES)
