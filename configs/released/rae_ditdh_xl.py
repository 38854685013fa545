"""The released DiT^DH-XL of RAE for ImageNet 256×256 (arXiv 2510.11690), in 16×16×768 features of DINOv2-B.

28 blocks of an encoder of width 1152 and 2 of a decoder of width 2048; noise at t = 1, and the output is noise − data.
Times are shifted by s = √(16·16·768/4096) = 6.93 in training and in sampling.
Published score: FID 1.51 without guidance; 1.13 with, by 50 steps of Euler's method and autoguidance.
Licence of the released weights: MIT.
Launch: python -m tim_jax.convert import stage2_model.pt WORKDIR --as=rae_ditdh_xl
    python -m tim_jax.sample --workdir=WORKDIR --steps=50 --config.codecs.autoencoder=RAE
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("released/sit_xl_2").get_config()

    config.data.height = 16
    config.data.width = 16
    config.data.channels = 768
    config.data.batch_size = 1024
    config.data.latent_scale = 0.0  # features are normalised value by value

    config.model.network = "ditdh"
    config.model.qk_norm = False
    config.model.patch_size = 1
    config.model.learn_sigma = False
    config.model.clock = "t"
    config.model.negated = False

    config.times.shift_reference = 16 / 3  # so that 256 positions are shifted by 6.93
    config.optimizer.learning_rate = 2e-4
    config.ema.slow = 0.9995
    config.training.steps = 1_000_000
    config.sampling.sampler = "euler"
    config.sampling.grid = "shifted"
    config.sampling.shift = 6.928203230275509
    config.sampling.guidance_channels = 0
    return config
