"""The released DDT-XL/2 for ImageNet 256×256 (arXiv 2504.05741), in latents of the Stable Diffusion autoencoder.

22 blocks of an encoder and 6 of a decoder; τ = 1 − t from noise to data, and the output is data − noise.
Published score: FID 1.26 with guidance on an interval of times; 1.31 in the paper's abstract.
Licence of the released weights: not found; see https://github.com/MCG-NJU/DDT.
Launch: python -m tim_jax.convert import model.ckpt WORKDIR --as=ddt_xl_2
    python -m tim_jax.sample --workdir=WORKDIR --steps=250 --guidance=2.2 --config.sampling.guidance_high=0.7
    --config.codecs.autoencoder=SD-VAE
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("released/sit_xl_2").get_config()

    config.model.network = "ddt"
    config.model.learn_sigma = False
    config.sampling.sampler = "euler"
    config.sampling.guidance_channels = 0
    return config
