"""Frozen pretrained models, and the conversion of published weights.

Image autoencoders have `factor`, `encode(images, keys_B=None)` and `decode(latents)`, and `encodes`, False, where they
decode only; text encoders take token numbers and their mask; image encoders, whose features a network may be aligned
to, have `width` and `features(images, grid)`. All are Flax modules whose parameters `load` reads from Hugging Face
files. To add one (RADIO, with which TiM was trained, has its place here), write a file with a Kind and a line in a
table below.
"""

from tim_jax.codecs import autoencoder_dc, autoencoder_kl, autoencoder_rae, bert, dino, gemma
from tim_jax.codecs.loading import describe as describe
from tim_jax.codecs.loading import load as load
from tim_jax.codecs.tiling import tiled as tiled

# Keyed by the class or model type in config.json.
AUTOENCODERS = {
    "AutoencoderKL": autoencoder_kl.KIND,
    "AutoencoderDC": autoencoder_dc.KIND,
    "AutoencoderRAE": autoencoder_rae.KIND,
}
TEXT_ENCODERS = {"gemma3_text": gemma.KIND, "bert": bert.KIND}
IMAGE_ENCODERS = {"dinov2": dino.KIND, "dinov2_with_registers": dino.KIND}
KINDS = {"autoencoder": AUTOENCODERS, "text_encoder": TEXT_ENCODERS, "image_encoder": IMAGE_ENCODERS}
