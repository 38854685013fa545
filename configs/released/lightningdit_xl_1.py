"""The released LightningDiT-XL/1 for ImageNet 256×256 (arXiv 2501.01423), in 16×16×32 latents of VA-VAE.

675M parameters; τ = 1 − t from noise to data, and the output is data − noise. Latents are normalised by their mean and
standard deviation per channel, as `data.source = "latents"` reads them from files and VA-VAE makes them. Guidance is on
the first three of the 32 channels, as in the published code, and steps are shorter near noise: τ' = 0.3 τ/(1 − 0.7 τ).
Published score: FID 2.17 without guidance; 1.35 with, scale 6.7 where τ ≥ 0.125, by 250 steps of Euler's method.
Licence of the released weights: MIT.
Launch: python -m tim_jax.convert import lightningdit-xl-imagenet256-800ep.pt WORKDIR --as=lightningdit_xl_1
    python -m tim_jax.sample --workdir=WORKDIR --steps=250 --guidance=6.7 --config.sampling.guidance_high=0.875
    --config.codecs.autoencoder=VA-VAE
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("released/sit_xl_2").get_config()

    config.data.height = 16
    config.data.width = 16
    config.data.channels = 32
    config.data.batch_size = 1024
    config.data.latent_scale = 0.0  # one for each channel

    config.model.network = "lightningdit"
    config.model.patch_size = 1
    config.model.qk_norm = False
    config.model.learn_sigma = False

    config.times.distribution = "logit_normal"
    config.times.P_mean = 0.0
    config.times.P_std = 1.0
    config.optimizer.learning_rate = 2e-4
    config.training.steps = 1_000_000
    config.sampling.sampler = "euler"
    config.sampling.grid = "shifted"
    config.sampling.shift = 10 / 3
    return config
