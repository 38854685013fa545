"""The `codecs` section of a configuration: the pretrained models that a run uses."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import flax.linen as nn

from tim_jax import codecs
from tim_jax.codecs import stand_in
from tim_jax.types import DTYPES

STATES = ("last", "second_to_last")
LATENTS = ("mean", "sample")
UNUSED = {
    ("codecs.text_encoder", "codecs.text_memory", "codecs.text_states", "codecs.text_escapes"): (
        "model.condition is not 'text'",
        lambda c: c.model.condition != "text",
    ),
    ("codecs.image_encoder",): ("data.features_width is 0", lambda c: c.data.features_width == 0),
    ("codecs.latents",): (
        "data.encode is False or codecs.autoencoder ''",
        lambda c: not (c.data.encode and c.codecs.autoencoder),
    ),
    ("codecs.tile",): ("codecs.autoencoder is ''", lambda c: not c.codecs.autoencoder),
}


@dataclasses.dataclass(frozen=True)
class CodecSettings:
    """Pretrained models that encode and decode: folders of published files, a path or hf://owner/repository."""

    autoencoder: str = ""  # whose latents are trained on; "": images, or latents that nothing here decodes
    text_encoder: str = ""  # of captions and prompts; "minilm": all-MiniLM-L6-v2; "stand-in": random weights
    image_encoder: str = ""  # whose features hidden states are aligned with
    # Captions whose features are computed once and kept in the memory of each process; 0: computed anew in each batch.
    text_memory: int = 0
    text_states: str = "last"  # of the text encoder: last or second_to_last
    # Read "ä" of captions and prompts as the escape "\xe4", and all beyond printable ASCII likewise: as published, for
    # published weights only.
    text_escapes: bool = False
    latents: str = "mean"  # of the autoencoder's distribution for an image: its mean, or a sample
    dtype: str = "float32"  # of weights and computation, "float32" or "bfloat16"
    tile: int = 0  # side in pixels of the blended tiles in which larger images are encoded and decoded; 0: none

    def check(self) -> None:
        """Raises ValueError, naming key and value, for settings that cannot be."""
        for name, known in (("text_states", STATES), ("latents", LATENTS), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise ValueError(f"codecs.{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        for name in ("tile", "text_memory"):
            if getattr(self, name) < 0:
                raise ValueError(f"codecs.{name} is {getattr(self, name)}; it must be at least 0")

    def factor_of_images(self, encode: bool, condition: str, features_width: int) -> int:
        """Returns how many pixels of an image become one position of an example, along each side.

        Args:
            encode: `data.encode`, whether images are encoded as they are read.
            condition: `model.condition`.
            features_width: `data.features_width`.

        Returns:
            The autoencoder's factor, or 1 where images are not encoded.

        Raises:
            ValueError: if a model that is needed is not named, or cannot be read.
        """
        if not encode:
            return 1
        if condition == "text" and not self.text_encoder:
            raise ValueError("codecs.text_encoder is ''; it must name one for data.encode with model.condition 'text'")
        if features_width and not self.image_encoder:
            raise ValueError(
                f"codecs.image_encoder is ''; it must name one for data.encode with data.features_width "
                f"{features_width}"
            )
        if not (self.autoencoder or self.text_encoder or self.image_encoder):
            raise ValueError("data.encode is True; it must be False, since codecs names nothing to encode examples by")
        if not self.autoencoder:
            return 1
        module = self.describe()
        if not getattr(module, "encodes", True):
            raise ValueError(
                f"codecs.autoencoder is {self.autoencoder!r}; it must be one that encodes, for data.encode True: "
                "this one decodes only"
            )
        return module.factor

    def describe(self) -> nn.Module:
        """Returns the autoencoder without its weights. Raises ValueError with one line that says what is wrong."""
        with self._named("autoencoder"):
            module = codecs.describe(self.autoencoder, codecs.AUTOENCODERS, DTYPES[self.dtype])
        if self.latents == "sample" and not hasattr(module, "moments"):
            raise ValueError(
                f"codecs.latents is 'sample'; it must be 'mean', since the autoencoder {self.autoencoder} has no "
                "variance"
            )
        if self.tile % (4 * module.factor):
            raise ValueError(
                f"codecs.tile is {self.tile}; it must be a multiple of {4 * module.factor}, four latents of "
                f"{self.autoencoder}"
            )
        return module

    def describe_text_encoder(self) -> nn.Module:
        """Returns the text encoder without its weights. Raises ValueError with one line."""
        if self.text_encoder == stand_in.NAME:
            return stand_in.describe(DTYPES[self.dtype])
        with self._named("text_encoder"):
            return codecs.describe(self.text_encoder, codecs.TEXT_ENCODERS, DTYPES[self.dtype])

    def load(self, part: str) -> tuple[nn.Module, Any]:
        """Loads (module, parameters) of "autoencoder", "text_encoder" or "image_encoder". Raises ValueError."""
        path, dtype = getattr(self, part), DTYPES[self.dtype]
        if part == "text_encoder" and path == stand_in.NAME:
            return stand_in.load(dtype)
        with self._named(part):
            return codecs.load(path, codecs.KINDS[part], dtype)

    @contextlib.contextmanager
    def _named(self, part: str) -> Iterator[None]:
        """A context whose errors begin with the key that names a model."""
        try:
            yield
        except ValueError as error:
            named = getattr(self, part)
            raise ValueError(f"codecs.{part} is {named!r}; it must be a model that can be read: {error}") from None
