"""Consistency trajectory models with their adversary, of flow matching on the digits (arXiv 2310.02279).

    the loss of ctm.py + λ mean ς(−d(x̂_s)),   x̂ a sample of one jump from noise or from noised data

It starts from a student of ctm.py, as the published adversary sets in late. x̂ is noised to times s as they are drawn
for t, and the heads see the teacher's hidden states there. Published: a discriminator on features of networks that were
trained to classify (StyleGAN-XL's), and a λ that follows the ratio of both gradients, here constant.

Published, FID of one step: CIFAR-10 1.73, ImageNet 64² 1.92.

Launch: python -m tim_jax.train --config=configs/digits_teacher.py --workdir=runs/digits_teacher
        python -m tim_jax.train --config=configs/distillation/ctm.py --workdir=runs/ctm_distilled
        python -m tim_jax.train --config=configs/distillation/ctm_adversarial.py --workdir=runs/ctm_adversarial
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("distillation/ctm").get_config()
    config.start.checkpoint = "runs/ctm_distilled"
    config.objective.adversary.weight = 0.1
    config.objective.adversary.blocks = (2, 4)
    config.objective.adversary.r1_weight = 1.0
    config.objective.rollout.from_noise = 0.5
    config.optimizer.learning_rate = 2e-4
    config.ema.slow = 0.98
    config.training.steps, config.training.sample_every = 600, 200
    return config
