"""LightningDiT (arXiv 2501.01423) on the embedded digits, from scratch, by the loss of configs/digits_small.py.

The embedding of the interval joins the condition and is zero at first: any-step training starts as flow matching does.

Launch: python -m tim_jax.train --config=configs/digits_lightningdit.py --workdir=runs/digits_lightningdit
"""

from tim_jax.config import loading


def get_config():
    return loading.load("digits").with_network(loading.load("digits_small").get_config(), "lightningdit")
