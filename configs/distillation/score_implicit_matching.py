"""Score implicit matching (SIM) of flow matching on the digits (arXiv 2410.16794).

    L = Σ y (x̂_S − x̂)/√(‖y‖² + c²),   y = x̂_T − x̂_S,   x̂ a sample of the student in one jump

x̂_T and x̂_S are what teacher and score network make of x̂ noised again, to x_t, through both of which the gradient runs.
If the score network is exact, that gradient is the one of E √(‖y‖² + c²) by the student's score at given x_t. The score
network makes five updates for one of the student's. Of the digits only the labels are used.

Published, CIFAR-10, FID at 1 evaluation: 2.06 without labels, 1.96 with them.

Launch: python -m tim_jax.train --config=configs/digits_teacher.py --workdir=runs/digits_teacher
        python -m tim_jax.train --config=configs/distillation/score_implicit_matching.py --workdir=runs/sim
"""

from tim_jax.config import loading


def get_config():
    return loading.load("digits_teacher").student(
        {
            "objective.name": "distribution_matching",
            "objective.matching.gradient": "sim",
            "optimizer.learning_rate": 2e-4,
            "ema.slow": 0.98,
        },
        steps=600,
    )
