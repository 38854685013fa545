"""TiM on images of your own, in one folder per class: on two CPU cores, or on the accelerator that is there.

Launch: python -m tim_jax.train --config=own_images --config.data.path=FOLDER --workdir=DIR
See the data first: python -m tim_jax.inspect --config=own_images --config.data.path=FOLDER

Classes are counted; images that lie in no class folder are one class. A twentieth is held out, unless the data has a
part of its own, such as val/. All images become squares, of 32 pixels on CPUs and of 64 elsewhere. For squares of
another size add --config.data.height=48; to keep the aspect ratios, --config.data.buckets.area=1024. Values of -1 are
chosen at the first start, and recorded in the workdir.
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").get_config()

    config.data.source = "folder"
    config.data.path = ""  # --config.data.path=FOLDER
    config.data.height = -1
    config.data.width = -1
    config.data.channels = 3
    config.data.batch_size = -1
    config.data.held_out_share = -1.0
    config.data.buckets.max_cropped = 0.75
    config.data.buckets.enlarge = True

    config.model.num_classes = -1
    config.model.size = "XS"  # --config.model.size=S is larger
    config.model.width = 0
    config.model.depth = 0
    config.model.heads = 0
    config.model.bottleneck = 0
    config.model.encoder_depth = 0

    config.training.steps = 4000
    config.training.sample_every = 250
    config.training.sample_steps = (1, 4, 16)
    return config
