"""A small ablation, to read its tables in 5_reading_a_run.ipynb: two minutes on two CPU cores.

Launch: python -m tim_jax.ablate --config=notebooks/ablation/definition.py --workdir=runs/ablation
"""

from tim_jax import config_files
from tim_jax.ablation import Ablation


def get_ablation():
    base = config_files.load("digits_tiny").get_config()
    base.training.steps = base.optimizer.decay_steps = 800
    base.evaluation.samples = 500
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
