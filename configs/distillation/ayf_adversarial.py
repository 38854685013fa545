"""The adversarial finish of Align Your Flow, Eulerian, on the digits (arXiv 2506.14603).

    the loss of ayf_eulerian.py, w = 0.99 from the first step on, + λ mean ς(−d(x̂_s)),   x̂ a sample of one jump

It starts from a student of ayf_eulerian.py. x̂ is noised to times s as they are drawn for t, and the heads see the
teacher's hidden states there (LADD). The paper's discriminator is a network of its own on images.

Launch: python -m tim_jax.train --config=configs/digits_teacher.py --workdir=runs/digits_teacher
        python -m tim_jax.train --config=configs/distillation/ayf_eulerian.py --workdir=runs/ayf_eulerian_distilled
        python -m tim_jax.train --config=configs/distillation/ayf_adversarial.py --workdir=runs/ayf_adversarial
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("distillation/ayf_eulerian").get_config()
    config.start.checkpoint = "runs/ayf_eulerian_distilled"
    config.objective.tangent.warmup_steps = 0
    config.objective.adversary.weight = 0.1
    config.objective.adversary.blocks = (2, 4)
    config.objective.adversary.r1_weight = 1.0
    config.optimizer.learning_rate = 2e-4
    config.ema.slow = 0.98
    config.training.steps, config.training.sample_every = 600, 200
    return config
