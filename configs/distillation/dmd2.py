"""DMD2, distribution matching, of flow matching on the digits (arXiv 2405.14867).

    ∂L/∂x̂ = (x̂_S − x̂_T)/m + λ ∂ς(−d)/∂x̂,   m the mean of |x̂ − x̂_T|,   x̂ a sample of the student in one to four jumps

x̂_T and x̂_S are what teacher and score network make of x̂ noised again, and d the logits of heads on the score network's
states, which tell it from data. Score network and heads make five updates on the student's samples for one of the
student's, so that a step costs eight of flow matching's or more; all networks start from the teacher's weights.

Published: AdamW at 2e-6 in batches of 280, 200,000 steps, λ = 3e-3. FID at 1 evaluation, ImageNet 64: 2.61 without the
adversary, 1.51 with it, 1.28 after longer training; SDXL in 4 evaluations.

Launch: python -m tim_jax.train --config=configs/digits_teacher.py --workdir=runs/digits_teacher
        python -m tim_jax.train --config=configs/distillation/dmd2.py --workdir=runs/dmd2
"""

from tim_jax.config import loading


def get_config():
    return loading.load("digits_teacher").student(
        {
            "objective.name": "distribution_matching",
            "objective.rollout.max_jumps": 4,
            "objective.adversary.weight": 3e-3,
            "objective.adversary.trunk": "score",
            "objective.adversary.trunk_weight": 1e-2,
            "objective.adversary.blocks": (2,),
            "objective.adversary.network.updates": 5,
            "optimizer.learning_rate": 2e-4,
            "ema.slow": 0.98,
        },
        steps=600,
    )
