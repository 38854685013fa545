"""Text to image on captioned images of your own: on two CPU cores, or on the accelerator that is there.

Launch: python -m tim_jax.train --config=own_images_t2i --config.data.path=FOLDER --workdir=DIR
Then: python -m tim_jax.sample --workdir=DIR --prompt="a caption of yours"

Captions lie beside the images (cat.jpg and cat.txt), or in metadata.jsonl or metadata.csv. The text encoder is a small
stand-in with random weights: the model learns the captions that it sees, and no language. docs/text_to_image.md says
how to name a pretrained one. Sizes and batches are those of configs/own_images.py.
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("own_images").get_config()

    config.data.encode = True
    config.data.text_width = 96
    config.data.text_tokens = 72
    config.codecs.text_encoder = "stand-in"

    config.model.condition = "text"
    config.model.num_classes = loading.load("base").get_config().model.num_classes
    return config
