"""The released TiM-XL/1 for ImageNet 512×512 (c2i_model_512.safetensors), in latents of DC-AE f32c32 (sana 1.1).

It samples as the published code does, see released_imagenet256.py.

Published score with guidance, 1 and 250 steps: FID 4.79, 1.69.
Launch: python -m tim_jax.convert import hf://GoodEnough/TiM-C2I/c2i_model_512.safetensors WORKDIR
Then, as published: python -m tim_jax.sample --workdir=WORKDIR --steps=1
    python -m tim_jax.sample --workdir=WORKDIR --steps=250 --guidance=3.0 --config.sampling.guidance_high=0.7
    --config.sampling.stochasticity=0.2
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("imagenet512_xl").get_config()
    config.model.rope_order = "official"
    config.sampling.exclusive_ends = True
    config.sampling.stochastic = "euler"
    return config
