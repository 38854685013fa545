"""The released DDT-XL/2 for ImageNet 512×512 (arXiv 2504.05741): ddt_xl_2.py on latents of 64×64.

Published score: FID 1.28 with guidance.
Licence of the released weights: see https://github.com/MCG-NJU/DDT.
Launch: python -m tim_jax.convert import model.ckpt WORKDIR --as=ddt_xl_2_512
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("released/ddt_xl_2").get_config()
    config.data.height = 64
    config.data.width = 64
    return config
