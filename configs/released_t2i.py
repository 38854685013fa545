"""The released TiM-XL/1 for text to image (t2i_model.bin), with Gemma 3 1B, in latents of DC-AE f32c32 (sana 1.1).

It samples as the published code does, see released_imagenet256.py, and reads captions as that does: as many tokens as
the longest of the batch has, without a mask, so that one prompt has no padding, and with Unicode escapes for all that
is not ASCII.

Published score: GenEval 0.67, 0.76, 0.80, 0.83 at 1, 8, 32, 128 evaluations.
Launch: python -m tim_jax.convert import hf://GoodEnough/TiM-T2I/t2i_model.bin WORKDIR
Then, as published: python -m tim_jax.sample --workdir=WORKDIR --prompts=FILE --layout=geneval --size=1024x1024
    --steps=4 --guidance=2.5 --config.sampling.batch_size=32 --config.codecs.autoencoder=DC-AE
    --config.codecs.text_encoder=GEMMA
"""

from tim_jax.config import loading


def get_config():
    config = loading.load("t2i_xl").get_config()
    config.model.rope_order = "official"
    config.model.use_text_mask = False
    config.codecs.text_escapes = True
    config.sampling.exclusive_ends = True
    config.sampling.stochastic = "euler"
    return config
