"""The released SiT-XL/2 for ImageNet 512×512 (arXiv 2401.08740): sit_xl_2.py on latents of 64×64.

Published score: FID 2.62, scale 1.5, by 250 steps of the SDE.
Licence of the released weights: MIT, not checked.
Launch: python -m tim_jax.convert import SiT-XL-2-512x512.pt WORKDIR --as=sit_xl_2_512
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("released/sit_xl_2").get_config()
    config.data.height = 64
    config.data.width = 64
    return config
