"""A small DiT^DH on the embedded digits, whose decoder is wider than the encoder, by the loss of configs/digits.py.

Launch: python -m tim_jax.train --config=configs/digits_ditdh.py --workdir=runs/digits_ditdh
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits_ddt").get_config()
    config.model.network = "ditdh"
    config.model.decoder_width = 192
    config.model.decoder_heads = 6
    return config
