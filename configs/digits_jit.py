"""JiT (arXiv 2511.13720) on the pixels of the embedded digits, from scratch, by the loss of configs/digits_small.py.

The output is the image: F = (x_t − x̂)/max(t, 0.05) for OT-FM, at r ≠ t as well (arXiv 2601.22158). Patches of 16 pixels
go through a bottleneck of 8; four tokens of the class join the image's before the second block.

Launch: python -m tim_jax.train --config=configs/digits_jit.py --workdir=runs/digits_jit
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").with_network(loading.load("digits_small").get_config(), "jit")
    config.model.patch_bottleneck = 8
    config.model.class_tokens = 4
    config.model.context_start = 1

    config.transport.prediction = "x"
    config.transport.prediction_clip = 0.05
    return config
