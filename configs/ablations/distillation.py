"""What is learnt from a teacher: flow matching on the digits, distilled by every objective in equal time.

Launch: python -m tim_jax.train --config=configs/digits_teacher.py --workdir=runs/digits_teacher
        python -m tim_jax.pairs --workdir=runs/digits_teacher --out=runs/digits_pairs --examples=20000 --steps=32
        python -m tim_jax.ablate --config=configs/ablations/distillation.py --workdir=runs/ablations/distillation
Time: 20 variants × 3 seeds × about 65 seconds of a CPU core; before it, once, teacher and pairs.

`tim` and `slimflow`, here with a network of the same size, are trained from scratch, all others start from the
teacher's weights; the teacher itself stands beside them, with its own training, which no variant is charged for, nor
are reflow and slimflow for their pairs.

Published (TiM, arXiv 2509.04394, ablation on ImageNet 256, B/4, 80 epochs), FID at 1 / 8 / 50 evaluations:
flow matching, as the teacher is, 309.5 / 77.26 / 20.35, TiM from scratch 47.46 / 24.62 / 17.10. To compare: how much of
that gap at one evaluation each student closes, whether it is ahead of TiM from scratch there, and whether at many
evaluations it still comes up to its teacher. scm_distillation, rcm, tbcm, cmt, sana_sprint and those that learn by
distribution matching or an adversary alone (dmd2 to ladd) learn jumps to r = 0, so that more evaluations are noised
again between; reflow, slimflow and straightening, in four segments, are flow matching
still; the others learn jumps between any two times.

Learning rates: of a student that starts from the teacher, the teacher's own 1e-3, and of distribution_matching that of
its configurations, 2e-4; from scratch, what is best in objectives.py, 16e-3 for `tim` and 8e-3 for flow matching.

All have the transport of the teacher, OT-FM. TiM, here and from the teacher, has the loss of configs/digits.py; the
others are as their papers have them, but for what these count in steps, which is a share of these few.
"""

from tim_jax.ablation import Ablation
from tim_jax.config import loading

TEACHER = loading.load("digits_teacher").WORKDIR


def get_ablation():
    base = loading.load("digits").network()
    base.training.steps = 600
    base.training.sample_every = 0
    base.optimizer.warmup_steps = 60
    base.ema.slow = 0.98

    tuned = loading.load("digits").get_config()
    changed = {
        "times": ("share_equal", "share_min"),
        "objective": ("weight.kernel", "adaptive.power", "direction", "velocity"),
    }
    tim = {f"{part}.{key}": tuned[part][key] for part, keys in changed.items() for key in keys}

    rate = "optimizer.learning_rate"
    starts = {"start.checkpoint": TEACHER}
    learns = starts | {"teacher.checkpoint": TEACHER}
    warms_up = learns | {"objective.tangent.warmup_steps": base.training.steps // 3}
    weighs = warms_up | {"start.reinitialise": ("log_variance_head",)}
    matched = learns | {"objective.name": "distribution_matching", "objective.rollout.max_jumps": 4, rate: 2e-4}
    of_score = {"objective.adversary.trunk": "score", "objective.adversary.blocks": (2, 4)}
    sprint = loading.load("distillation/sana_sprint").get_config()
    adversary = {f"objective.adversary.{key}": sprint.objective.adversary[key] for key in ("weight", "loss", "blocks")}
    adversary["objective.rollout.from_noise"] = sprint.objective.rollout.from_noise
    reflow = loading.load("distillation/reflow").get_config()
    pairs = ("data.source", "data.path", "data.paired_noise", "data.condition_dropout", "evaluation.source")
    return Ablation(
        base=base,
        variants={
            "tim": tim | {rate: 16e-3},
            "tim_teacher": learns | tim | {"objective.velocity": "teacher"},
            "mean_flow_teacher": learns | {"objective.name": "mean_flow", "objective.velocity": "teacher"},
            "scm_distillation": weighs | {"objective.name": "scm_distillation"},
            "ayf_eulerian": warms_up | {"objective.name": "ayf_eulerian"},
            "ayf_lagrangian": warms_up | {"objective.name": "ayf_lagrangian"},
            "ctm": learns | {"objective.name": "ctm"},
            "reflow": starts | {"objective.name": "rectified_flow"} | {key: reflow[key] for key in pairs},
            "slimflow": loading.load("distillation/slimflow").CHANGES
            | {key: reflow[key] for key in pairs}
            | {rate: 8e-3},
            "straightening": learns | {"objective.name": "straightening"},
            "rcm": weighs | {"objective.name": "rcm"},
            "tbcm": weighs | {"objective.name": "tbcm"},
            "cmt": learns | {"objective.name": "cmt"},
            "dmd2": matched,
            "f_distill": matched
            | of_score
            | {"objective.adversary.weight": 1e-3, "objective.matching.divergence": "js"},
            "score_implicit_matching": matched
            | {"objective.matching.gradient": "sim", "objective.rollout.max_jumps": 1},
            "ladd": matched | adversary | {"objective.matching.weight": 0.0, "objective.adversary.weight": 1.0},
            "sana_sprint": weighs | adversary | {"objective.name": "scm_distillation"},
            "ayf_adversarial": warms_up | adversary | {"objective.name": "ayf_eulerian"},
            "ctm_adversarial": learns | adversary | {"objective.name": "ctm"},
        },
        baselines={"teacher": TEACHER},
    )
