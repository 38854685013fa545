"""The released TiM-XL/1 for ImageNet 512×512 (c2i_model_512.safetensors), in latents of DC-AE f32c32 (sana 1.1).

Published score with guidance, 1 and 250 steps: FID 4.79, 1.69.
Launch: python -m tim_jax.convert import hf://GoodEnough/TiM-C2I/c2i_model_512.safetensors WORKDIR
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("imagenet512_xl").get_config()
    config.model.rope_order = "official"
    return config
