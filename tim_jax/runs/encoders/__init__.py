"""The frozen parts that a run's `codecs` section names, at work on a mesh: images to latents and back, texts and images
to features. Weights are whole on every device, rows over data and fsdp."""

from tim_jax.runs.encoders.images import Decoder, Pixels, decoder_of
from tim_jax.runs.encoders.module import FrozenModule, open_module
from tim_jax.runs.encoders.rows import Encoder
from tim_jax.runs.encoders.texts import Texts, texts_of

__all__ = ["Decoder", "Encoder", "FrozenModule", "Pixels", "Texts", "decoder_of", "open_module", "texts_of"]
