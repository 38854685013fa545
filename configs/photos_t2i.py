"""Text to image at native resolution on the embedded photographs and their captions, in RGB, on two CPU cores.

The text encoder is a small one of Gemma's architecture with fixed random weights (tim_jax/codecs/stand_in.py): the code
is that of t2i_xl, but the model knows its own captions only, not language.
Launch: python -m tim_jax.train --config=configs/photos_t2i.py --workdir=runs/photos_t2i
Then: python -m tim_jax.sample --workdir=runs/photos_t2i --prompt="a tabby cat" --size=32x48
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("photos").get_config()

    config.data.encode = True
    config.data.text_width = 96
    config.data.text_tokens = 72
    config.codecs.text_encoder = "stand-in"

    config.model.condition = "text"
    config.model.num_classes = loading.load("base").get_config().model.num_classes
    return config
