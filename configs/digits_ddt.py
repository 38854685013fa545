"""A small DDT on the embedded digits: an encoder of three blocks, a decoder of one, by the loss of configs/digits.py.

Launch: python -m tim_jax.train --config=configs/digits_ddt.py --workdir=runs/digits_ddt
"""

from tim_jax.config import loading


def get_config():
    digits = loading.load("digits")
    config = digits.with_network(digits.get_config(), "ddt")
    config.model.depth = 3
    config.model.decoder_depth = 1
    return config
