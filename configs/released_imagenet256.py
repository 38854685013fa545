"""The released TiM-XL/2 for ImageNet 256×256 (c2i_model_256.safetensors), in latents of the ft-ema autoencoder.

Published score with guidance, 1, 2, 4, 250 steps: FID 6.14, 3.61, 2.62, 1.65.
Launch: python -m tim_jax.convert import hf://GoodEnough/TiM-C2I/c2i_model_256.safetensors WORKDIR
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("imagenet256_xl").get_config()
    config.model.rope_order = "official"
    return config
