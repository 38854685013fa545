"""The released JiT-H/32 for ImageNet 512×512 (arXiv 2511.13720): jit_b_32.py with 956M parameters.

Published score: FID 1.94 with guidance where τ ≥ 0.1, by 50 steps of Heun's method.
Licence of the released weights: MIT, not checked.
Launch: python -m tim_jax.convert import checkpoint-last.pth WORKDIR --as=jit_h_32
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("released/jit_b_32").get_config()
    config.model.size = "H"
    return config
