"""What is learnt: the objectives by name, each as its paper has it, with the same network, data and time.

Launch: python -m tim_jax.ablate --config=configs/ablations/objectives.py --workdir=runs/ablations/objectives
Time: 25 variants, each with 3 runs for its learning rate and 3 seeds, about 55 seconds of one core a run: 70 minutes
on two quiet cores, with a command (--only) on each.

Published (TiM, arXiv 2509.04394, ablation on ImageNet 256, B/4, 80 epochs), FID at 1 / 8 / 50 evaluations:
flow matching 309.5 / 77.26 / 20.35, TiM 47.46 / 24.62 / 17.10. Others at one evaluation on ImageNet 256: improved
MeanFlow XL 1.72, TiM XL 3.26, MeanFlow XL 3.43, Shortcut XL 10.60. To compare: how far flow matching falls behind at
few evaluations, whether it is ahead at many, and the order of the others at one.
`improved_mean_flow` learns guidance scales from 1 to 8 and is measured at 1, which its unguided variant learns alone.
`tim_digits` has the loss of configs/digits.py. What the papers count in steps is a share of these few steps here.
"""

from tim_jax.ablation import Ablation
from tim_jax.config import loading

SELF_DISTILLATION = (
    "eulerian_self_distillation",
    "lagrangian_self_distillation",
    "progressive_self_distillation",
)


def get_ablation():
    base = loading.load("digits_small").network()
    tuned = loading.load("digits_small").get_config()
    changed = {
        "times": ("share_equal", "share_min"),
        "objective": ("weight.kernel", "adaptive.power", "direction", "velocity"),
    }
    return Ablation(
        base=base,
        learning_rates=(2e-3, 8e-3, 16e-3),
        variants={
            "tim": {},
            "tim_digits": {f"{part}.{key}": tuned[part][key] for part, keys in changed.items() for key in keys},
            "flow_matching": {"objective.name": "flow_matching"},
            "rectified_flow": {"objective.name": "rectified_flow"},
            "mean_flow": {"objective.name": "mean_flow"},
            "improved_mean_flow": {"objective.name": "improved_mean_flow"},
            "improved_mean_flow_tokens": {
                "objective.name": "improved_mean_flow",
                "model.class_tokens": 8,
                "model.guidance_tokens": 4,
            },
            "improved_mean_flow_unguided": {
                "objective.name": "improved_mean_flow",
                "objective.input_guidance.max_scale": 1.0,
            },
            "modular_mean_flow": {
                "objective.name": "modular_mean_flow",
                "objective.tangent.differentiate_steps": base.training.steps,
            },
            "scm": {
                "objective.name": "scm",
                "transport.name": "trigflow",
                "objective.tangent.warmup_steps": base.training.steps // 10,
            },
            "shortcut": {"objective.name": "shortcut"},
            "split_mean_flow": {"objective.name": "split_mean_flow"},
            "alphaflow": {
                "objective.name": "alphaflow",
                "objective.bootstrap.alpha.end_step": base.training.steps,
            },
            "soflow": {"objective.name": "soflow", "objective.bootstrap.alpha.end_step": base.training.steps},
            "tvm": {"objective.name": "tvm"},
            "facm": {"objective.name": "facm"},
            "dmf": {"objective.name": "dmf", "model.decoupled_depth": 1, "model.interval_aware": False},
            "twin_flow": {"objective.name": "twin_flow", "objective.twin.match_weight": 0.0},  # from scratch: RCGM
            "difference_transition_matching": {"objective.name": "difference_transition_matching"},
            "low_noise_contrastive": {"objective.name": "low_noise_contrastive"},
            "imm": {"objective.name": "imm"},
            "drifting": {"objective.name": "drifting"},
        }
        | {name: loading.load(f"objectives/{name}").CHANGES for name in SELF_DISTILLATION},
    )
