"""The released JiT-L/16 for ImageNet 256×256 (arXiv 2511.13720): jit_b_16.py with 459M parameters.

Published score: FID 2.36 with guidance where τ ≥ 0.1, by 50 steps of Heun's method.
Licence of the released weights: MIT, not checked.
Launch: python -m tim_jax.convert import checkpoint-last.pth WORKDIR --as=jit_l_16
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("released/jit_b_16").get_config()
    config.model.size = "L"
    return config
