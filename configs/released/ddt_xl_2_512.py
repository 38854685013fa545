"""The released DDT-XL/2 for ImageNet 512×512 (arXiv 2504.05741): ddt_xl_2.py on latents of 64×64.

Published score: FID 1.28 with guidance, scale 3.0 below t = 0.7, by 250 steps of Euler's method.
Licence of the released weights: not found; see https://github.com/MCG-NJU/DDT.
Launch: python -m tim_jax.convert import model.ckpt WORKDIR --as=ddt_xl_2_512
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("released/ddt_xl_2").get_config()
    config.data.height = 64
    config.data.width = 64
    return config
