"""The released SiT-XL/2 for ImageNet 256×256 (arXiv 2401.08740), in latents of the Stable Diffusion autoencoder.

675M parameters; τ = 1 − t from noise to data, and the output is data − noise, with four more channels that are not
used. Guidance is on three of the four channels, as in the published code.
Published score: FID 8.61 without guidance; 2.06 with, scale 1.5, by 250 steps of the SDE.
Licence of the released weights: MIT, not checked.
Launch: python -m tim_jax.convert import SiT-XL-2-256x256.pt WORKDIR --as=sit_xl_2
    python -m tim_jax.sample --workdir=WORKDIR --steps=250 --guidance=1.5 --config.sampling.sampler=sde
    --config.codecs.autoencoder=SD-VAE
To learn any number of steps from it: docs/released_weights.md.
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("base").get_config()

    config.data.source = "latents"
    config.data.height = 32
    config.data.width = 32
    config.data.channels = 4
    config.data.batch_size = 256
    config.data.flip = 0.5
    config.data.latent_scale = 0.18215

    config.model.network = "sit"
    config.model.size = "XL"
    config.model.patch_size = 2
    config.model.num_classes = 1000
    config.model.learn_sigma = True
    config.model.clock = "1-t"
    config.model.negated = True
    config.model.dtype = "bfloat16"
    config.model.remat = "full"

    config.objective.name = "flow_matching"
    config.times.distribution = "uniform"

    config.optimizer.learning_rate = 1e-4
    config.optimizer.ema_warmup = False

    config.training.steps = 7_000_000
    config.checkpoint.every = 2000

    config.sampling.sampler = "heun"
    config.sampling.guidance_channels = 3

    config.evaluation.labels = "balanced"
    config.evaluation.num_samples = 50_000
    return config
