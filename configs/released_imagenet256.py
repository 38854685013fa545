"""The released TiM-XL/2 for ImageNet 256×256 (c2i_model_256.safetensors), in latents of the ft-ema autoencoder.

It samples as the published code does: guidance leaves both ends of its interval out, T_max and so the first step among
them, and fresh noise takes the Euler form.

Published score with guidance, 1, 2, 4, 250 steps: FID 6.14, 3.61, 2.62, 1.65.
Launch: python -m tim_jax.convert import hf://GoodEnough/TiM-C2I/c2i_model_256.safetensors WORKDIR
Then, as published: python -m tim_jax.sample --workdir=WORKDIR --steps=1
    python -m tim_jax.sample --workdir=WORKDIR --steps=250 --guidance=2.5 --config.sampling.guidance_high=0.6
    --config.sampling.stochasticity=0.2
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("imagenet256_xl").get_config()
    config.model.rope_order = "official"
    config.sampling.exclusive_ends = True
    config.sampling.stochastic = "euler"
    return config
