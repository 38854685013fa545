"""The released JiT-B/32 for ImageNet 512×512 (arXiv 2511.13720): jit_b_16.py in patches of 32, with twice the noise.

133M parameters. x_t = (1 − t) x + 2 t ε: the noise grows with the side of the image. F divides by t ≥ 0.05, which is
σ ≥ 0.1.
Published score: FID 4.02 with guidance where τ ≥ 0.1, by 50 steps of Heun's method.
Licence of the released weights: MIT, not checked.
Launch: python -m tim_jax.convert import checkpoint-last.pth WORKDIR --as=jit_b_32
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("released/jit_b_16").get_config()
    config.data.height = 512
    config.data.width = 512
    config.model.patch_size = 32
    config.transport.noise_std = 2.0
    config.transport.prediction_clip = 0.1
    return config
