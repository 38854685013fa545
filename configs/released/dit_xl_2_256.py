"""The released DiT-XL/2 for ImageNet 256×256 (arXiv 2212.09748), in latents of the Stable Diffusion autoencoder.

675M parameters. It predicts noise at the 1000 times of DDPM's process, which the transport `ddpm` has exactly; of its
eight channels out the last four are of a variance that is not used. Guidance is on three of four channels, as in the
published code.
Published score: FID 9.62 without guidance; 2.27 with, scale 1.5, by 250 steps of the published sampler.
Licence of the released weights: CC BY-NC 4.0.
Launch: python -m tim_jax.convert import DiT-XL-2-256x256.pt WORKDIR --as=dit_xl_2_256
    python -m tim_jax.sample --workdir=WORKDIR --steps=50 --guidance=1.5 --config.codecs.autoencoder=SD-VAE
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("released/sit_xl_2").get_config()

    config.model.network = "dit"
    config.model.clock = "t"
    config.model.negated = False
    config.transport.name = "ddpm"
    config.sampling.sampler = "dpm_solver_2m"
    return config
