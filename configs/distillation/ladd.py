"""LADD, latent adversarial diffusion distillation, of flow matching on the digits (arXiv 2403.12015).

    −mean d(x̂_t),   x̂ a sample of one to four jumps, noised to t,   d the heads on the teacher's hidden states

Nothing else trains the student, which starts from its teacher's weights. The heads have the hinge loss, and t is
logit-normal. Published: heads after every block, and samples of the teacher in place of data.

Launch: python -m tim_jax.train --config=configs/digits_teacher.py --workdir=runs/digits_teacher
        python -m tim_jax.train --config=configs/distillation/ladd.py --workdir=runs/ladd
"""

from tim_jax.config import loading


def get_config():
    return loading.load("digits_teacher").student(
        {
            "objective.name": "distribution_matching",
            "objective.matching.weight": 0.0,
            "objective.adversary.weight": 1.0,
            "objective.adversary.loss": "hinge",
            "objective.adversary.blocks": (2, 4),
            "objective.adversary.distribution": "logit_normal",
            "objective.adversary.P_mean": 1.0,
            "objective.rollout.max_jumps": 4,
            "optimizer.learning_rate": 2e-4,
        },
        steps=900,
    )
