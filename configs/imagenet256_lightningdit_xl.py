"""LightningDiT-XL/1 on ImageNet 256×256, in the 16×16×32 latents of VA-VAE (arXiv 2501.01423), by TiM's loss.

Architecture: 675M parameters, as published; the interval's embedding is new and zero at first. Published with flow
matching, 800 epochs of batches of 1,024: FID 2.17, and 1.35 with guidance, at 250 steps.
Latents come as `data.source = "latents"` reads them, scaled by their own mean and standard deviation per channel.
Hardware: a pod slice such as v6e-256, or 32 H100; bfloat16.
Launch, on every host:
    python -m tim_jax.train --config=configs/imagenet256_lightningdit_xl.py
    --workdir=gs://BUCKET/imagenet256_lightningdit_xl --config.data.path=LATENTS
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("imagenet256_xl").get_config()

    config.data.height = 16
    config.data.width = 16
    config.data.channels = 32
    config.data.batch_size = 1024
    config.data.features_width = 0
    config.objective.alignment_weight = 0.0

    config.model.network = "lightningdit"
    config.model.patch_size = 1
    config.model.qk_norm = False

    config.optimizer.learning_rate = 2e-4
    config.optimizer.b2 = 0.95
    return config
