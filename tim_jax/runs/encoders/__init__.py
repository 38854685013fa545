"""The pretrained modules that a run's `codecs` section names, at work on a mesh.

They turn images into latents and back, and texts and images into features. Their weights are frozen and whole on every
device; the examples of a batch lie over the mesh axes data and fsdp.
"""

from tim_jax.runs.encoders.batches import BatchEncoder
from tim_jax.runs.encoders.images import Decoder, Pixels, open_decoder
from tim_jax.runs.encoders.module import FrozenModule, open_module
from tim_jax.runs.encoders.texts import TextEncoder, open_text_encoder

__all__ = [
    "BatchEncoder",
    "Decoder",
    "FrozenModule",
    "Pixels",
    "TextEncoder",
    "open_decoder",
    "open_module",
    "open_text_encoder",
]
