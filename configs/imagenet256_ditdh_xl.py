"""DiT^DH-XL on ImageNet 256×256, in the 16×16×768 latents of RAE (arXiv 2510.11690, DINOv2-B), by TiM's loss.

Architecture: 839M parameters, as published; the interval's embedding is new and zero at first. Published with flow
matching, 800 epochs of batches of 1,024: FID 1.51 without guidance, 1.13 with it, at 50 steps of Euler's method.
Latents come as `data.source = "latents"` reads them, or of images with data.encode=True and codecs.autoencoder=
hf://nyu-visionx/RAE-dinov2-wReg-base-ViTXL-n08. As published, times are shifted towards noise by
√(16·16·768 / 4096) = 6.93, which is √(positions / shift_reference) here.
Hardware: a pod slice such as v6e-256, or 32 H100; bfloat16.
Launch, on every host:
    python -m tim_jax.train --config=configs/imagenet256_ditdh_xl.py --workdir=gs://BUCKET/imagenet256_ditdh_xl
    --config.data.path=LATENTS
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("imagenet256_xl").get_config()

    config.data.height = 16
    config.data.width = 16
    config.data.channels = 768
    config.data.batch_size = 1024
    config.data.features_width = 0
    config.objective.alignment_weight = 0.0

    config.model.network = "ditdh"
    config.model.patch_size = 1
    config.model.qk_norm = False

    config.times.shift_reference = 4096 / 768

    config.optimizer.learning_rate = 2e-4

    config.ema.slow = 0.9995
    return config
