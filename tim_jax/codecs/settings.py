"""What the `codecs` section of a configuration says."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from tim_jax import codecs
from tim_jax.codecs import stand_in

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
STATES = ("last", "second_to_last")
LATENTS = ("mean", "sample")


@dataclasses.dataclass(frozen=True)
class CodecSettings:
    """autoencoder, text_encoder, image_encoder: folders of published models, "" for none; text_encoder may be that of
    `stand_in`. text_states: a field of `gemma.Hidden`. latents: the mean of what an autoencoder says of an image, or a
    sample. tile: side in pixels of the tiles that larger images go through the autoencoder in; 0: none."""

    autoencoder: str = ""
    text_encoder: str = ""
    image_encoder: str = ""
    text_states: str = "last"
    latents: str = "mean"
    dtype: str = "float32"
    tile: int = 0

    def check(self) -> None:
        """Raises ValueError, naming key and value, for settings that cannot be."""
        for name, known in (("text_states", STATES), ("latents", LATENTS), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise ValueError(f"codecs.{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        if self.tile < 0:
            raise ValueError(f"codecs.tile is {self.tile}; it must be at least 0")

    def factor_of_images(self, encode: bool, condition: str, features_width: int) -> int:
        """Pixels of the images that are read per position of the rows made of them; 1 where rows are not encoded.

        encode, condition, features_width: as the configuration has them. Raises ValueError if a part is not named.
        """
        if not encode:
            return 1
        if condition == "text" and not self.text_encoder:
            raise ValueError("codecs.text_encoder is ''; data.encode needs one where model.condition is 'text'")
        if features_width and not self.image_encoder:
            raise ValueError(
                f"codecs.image_encoder is ''; data.encode needs one where data.features_width is {features_width}"
            )
        if not (self.autoencoder or self.text_encoder or self.image_encoder):
            raise ValueError("data.encode is True; codecs names nothing to encode rows by")
        return self.describe().factor if self.autoencoder else 1

    def describe(self) -> nn.Module:
        """The autoencoder without its weights. Raises ValueError with one line that says what is wrong with it."""
        module = codecs.describe(self.autoencoder, codecs.AUTOENCODERS, DTYPES[self.dtype])
        if self.latents == "sample" and not hasattr(module, "moments"):
            raise ValueError(
                f"codecs.latents is 'sample'; {self.autoencoder} is an autoencoder without a variance: give 'mean'"
            )
        if self.tile % (4 * module.factor):
            raise ValueError(
                f"codecs.tile is {self.tile}; it must be a multiple of {4 * module.factor}, four latents of "
                f"{self.autoencoder}"
            )
        return module

    def describe_text_encoder(self) -> nn.Module:
        """The text encoder without its weights. Raises ValueError with one line."""
        if self.text_encoder == stand_in.NAME:
            return stand_in.describe(DTYPES[self.dtype])
        return codecs.describe(self.text_encoder, codecs.TEXT_ENCODERS, DTYPES[self.dtype])

    def load(self, part: str) -> tuple[nn.Module, Any]:
        """(module, parameters) of "autoencoder", "text_encoder" or "image_encoder". Raises ValueError."""
        path, dtype = getattr(self, part), DTYPES[self.dtype]
        if part == "text_encoder" and path == stand_in.NAME:
            return stand_in.load(dtype)
        return codecs.load(path, codecs.KINDS[part], dtype)
