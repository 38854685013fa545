"""TiM at native resolution on the embedded photographs: crops at many aspect ratios, in RGB, on two CPU cores.

Launch: python -m tim_jax.train --config=configs/photos.py --workdir=runs/photos
See the buckets first: python -m tim_jax.inspect --config=configs/photos.py
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").get_config()

    config.data.source = "photos"
    config.data.height = 32
    config.data.width = 32
    config.data.channels = 3
    config.data.buckets.area = 32 * 32
    config.data.buckets.max_buckets = 7
    config.data.buckets.tokens = 2048
    config.data.batch_size = 256  # unused: tokens say how many examples
    config.data.flip = 0.5

    config.model.width = 160
    config.model.heads = 5

    config.training.steps = 4000
    config.training.sample_every = 1000
    return config
