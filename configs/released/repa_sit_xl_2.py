"""The released SiT-XL/2 of REPA for ImageNet 256×256 (arXiv 2410.06940), in latents of Stable Diffusion's autoencoder.

The network of sit_xl_2.py with four channels out and with the head that was aligned with DINOv2-B, trained with noise
at t = 1: its output is noise − data.
Published score: FID 5.9 without guidance (not checked); 1.42 with, scale 1.8 below t = 0.7, by 250 steps of the SDE.
Licence of the released weights: MIT.
Launch: python -m tim_jax.convert import last.pt WORKDIR --as=repa_sit_xl_2
    python -m tim_jax.sample --workdir=WORKDIR --steps=250 --guidance=1.8 --config.sampling.guidance_high=0.7
    --config.sampling.sampler=sde --config.codecs.autoencoder=SD-VAE
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("released/sit_xl_2").get_config()

    config.data.features_width = 768
    config.model.learn_sigma = False
    config.model.clock = "t"
    config.model.negated = False
    config.objective.alignment_weight = 0.5
    config.training.steps = 4_000_000
    config.sampling.guidance_channels = 0
    return config
