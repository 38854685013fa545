"""A small ablation, whose tables 5_reading_a_run.ipynb reads: a few minutes on two CPU cores.

Launch: python -m tim_jax.ablate --config=notebooks/ablation/definition.py --workdir=runs/ablation
"""

from tim_jax.config import loading
from tim_jax.ablation import Ablation


def get_ablation():
    base = loading.load("digits_tiny").get_config()
    base.training.steps = base.optimizer.decay_steps = 800
    base.evaluation.num_samples = 500
    base.evaluation.labels = "balanced"
    return Ablation(
        base=base,
        variants={
            "tim": {},
            "data_velocity": {"objective.velocity": "data"},
            "flow_matching": {"times.share_equal": 1.0, "times.share_min": 0.0, "objective.velocity": "data"},
        },
        equal="steps",
        seeds=2,
        sampler_steps=(1, 2, 4, 8, 16),
    )
