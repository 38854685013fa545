"""TiM-XL/1 on ImageNet 512×512, in 16×16×32 latents of DC-AE (f32c32).

Recipe: arXiv 2509.04394. 750,000 steps of 512 examples, alignment with features of the images at 256×256. What differs
from the published recipe is the same as in imagenet256_xl.py; DC-AE's latents have no variance to sample with.
Published score, 1 to 250 steps: FID 5.07, 4.79, 4.01, 2.55, 1.69.
Hardware: a pod slice such as v5p-64, or 32 H100; bfloat16.
Launch, on every host: python -m tim_jax.train --config=configs/imagenet512_xl.py --workdir=gs://BUCKET/imagenet512_xl
    --config.data.path=LATENTS --config.data.images=IMAGES --config.codecs.image_encoder=DINOV2_B
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("imagenet256_xl").get_config()

    config.data.height = 16
    config.data.width = 16
    config.data.channels = 32

    config.model.patch_size = 1
    return config
