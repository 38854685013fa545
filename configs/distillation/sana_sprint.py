"""SANA-Sprint, sCM with latent adversarial distillation, of flow matching on the digits (arXiv 2503.09641).

    sCM distillation − λ mean d(x̂_s),   x̂ = f_{t→0}(x_t),   d the heads on the teacher's hidden states

Half of the samples x̂ come from noise, the others from noised data, both by one further pass of the network, as in the
published code; data and x̂ are noised to times s. The heads have the hinge loss. Published: λ = 0.5, heads after four of
twenty blocks, ln(σ_s/α_s) ~ N(0.1, 1) for data of unit variance, a student on TrigFlow, and g over the root of a sum of
squares, not of their mean (`objective.tangent.total`).

Published, 1024² in one step: FID 7.59, GenEval 0.74.

Launch: python -m tim_jax.train --config=configs/digits_teacher.py --workdir=runs/digits_teacher
        python -m tim_jax.train --config=configs/distillation/sana_sprint.py --workdir=runs/sana_sprint
"""

from tim_jax.config import loading


def get_config():
    return loading.load("digits_teacher").student(
        {
            "objective.name": "scm_distillation",
            "objective.tangent.warmup_steps": 600,
            "objective.adversary.weight": 0.5,
            "objective.adversary.loss": "hinge",
            "objective.adversary.blocks": (2, 4),
            "objective.adversary.distribution": "log_normal",
            "objective.adversary.P_mean": 0.1,
            "objective.rollout.from_noise": 0.5,
            "start.reinitialise": ("log_variance_head",),
        },
        steps=900,
    )
