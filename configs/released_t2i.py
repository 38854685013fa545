"""The released TiM-XL/1 for text to image (t2i_model.bin), with Gemma 3 1B, in latents of DC-AE f32c32 (sana 1.1).

Published score: GenEval 0.67, 0.76, 0.80, 0.83 at 1, 8, 32, 128 evaluations.
Launch: python -m tim_jax.convert import hf://GoodEnough/TiM-T2I/t2i_model.bin WORKDIR
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("t2i_xl").get_config()
    config.model.rope_order = "official"
    config.model.use_text_mask = False
    return config
