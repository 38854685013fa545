"""TiM-B/4 on ImageNet 256×256 latents: the network of the published ablations (80 epochs).

Recipe: arXiv 2509.04394. 129M parameters, 100,000 steps of 4 × 256 examples, learning rate 4e-4. What differs from the
published recipe is the same as in imagenet256_xl.py.
Published score: FID 47.46 at 1 evaluation, 24.62 at 8, 17.10 at 50 (flow matching: 309.5, 77.26, 20.35).
Hardware: one host with 4 to 8 accelerators; bfloat16.
Launch: python -m tim_jax.train --config=configs/imagenet256_b.py --workdir=runs/imagenet256_b
    --config.data.path=LATENTS --config.data.images=IMAGES --config.codecs.image_encoder=DINOV2_B
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("imagenet256_xl").get_config()

    config.data.batch_size = 1024

    config.model.size = "B"
    config.model.patch_size = 4

    config.optimizer.learning_rate = 4e-4

    config.training.steps = 100_000
    config.model.remat = "none"
    return config
