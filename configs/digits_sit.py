"""SiT on the embedded digits, trained from scratch for any number of steps: the network of released flow models.

Launch: python -m tim_jax.train --config=configs/digits_sit.py --workdir=runs/digits_sit
Data, loss and schedule are those of configs/digits_small.py, and so are width and depth. The interval t − r enters by
an embedding that is zero at first. With --config.model.interval=tokens it is a token in front of those of the image.
With --config.model.decoupled_depth=1 there is none: the last block and the final layer see r in place of t.
It learns more slowly than the other networks; scores are in docs/networks.md.
"""

from tim_jax.config import loading


def get_config():
    return loading.load("digits").with_network(loading.load("digits_small").get_config(), "sit")
