"""Captions and prompts as networks take them."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tim_jax.codecs import stand_in
from tim_jax.codecs.settings import CodecSettings
from tim_jax.codecs.tokenizer import BYTES, Tokenizer, open_tokenizer
from tim_jax.config.run import Run
from tim_jax.runs.encoders.module import FrozenModule, open_module
from tim_jax.training import sharding
from tim_jax.training.sharding import on_mesh


class Texts:
    """Captions and prompts → what a network that is conditioned on text takes of them.

    length: tokens of a text, padding included. width: of a feature. Raises ValueError if no text encoder is named, or
    its states have another width.
    """

    def __init__(self, settings: CodecSettings, mesh: Mesh, length: int, width: int):
        if not settings.text_encoder:
            raise ValueError(
                "codecs.text_encoder is ''; texts need one: the folder of the text encoder, with its tokenizer, that "
                "the features trained on are of"
            )
        self.settings, self.mesh, self.length = settings, mesh, length
        config = settings.describe_text_encoder().config
        if config.hidden_size != width:
            raise ValueError(
                f"data.text_width is {width}; {settings.text_encoder} (codecs.text_encoder) has {config.hidden_size}"
            )
        stands_in = settings.text_encoder == stand_in.NAME
        self.tokenizer: Tokenizer = BYTES if stands_in else open_tokenizer(settings.text_encoder, config.vocab_size)
        self._apply = jax.jit(lambda part, ids, mask: self.features(part, ids, mask))

    @functools.cached_property
    def part(self) -> FrozenModule:
        """The text encoder, read when it is asked for. Raises ValueError."""
        return open_module(self.settings, "text_encoder", self.mesh)

    def check(self, prompts: Sequence[str]) -> None:
        """Raises ValueError, naming it, for a prompt that is empty, too long or no text."""
        self.tokenizer(prompts, self.length, strict=True)

    def features(self, part: FrozenModule, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """(B, M, T) float32 features of tokens (B, M); to be traced, with `self.part`."""
        return getattr(part(ids, mask), self.settings.text_states).astype(jnp.float32)

    def __call__(self, texts: Sequence[str]) -> dict[str, jax.Array]:
        """{"text": (B, M, T), "mask": (B, M)} of texts that every process knows; their number a multiple of the
        devices that rows lie on."""
        ids, mask = self.tokenizer(texts, self.length)
        where = sharding.batch_sharding(self.mesh)
        put = lambda x: jax.make_array_from_callback(x.shape, where, lambda index: x[index])  # noqa: E731
        ids, mask = put(ids), put(mask)
        with on_mesh(self.mesh):
            return {"text": self._apply(self.part, ids, mask), "mask": mask}

    @functools.cached_property
    def null(self) -> dict[str, np.ndarray]:
        """{"text": (1, M, T), "mask": (1, M)} of the empty prompt."""
        ids, mask = self.tokenizer([""], self.length)
        whole = jax.jit(lambda *args: self.features(*args), out_shardings=sharding.replicated(self.mesh))
        with on_mesh(self.mesh):
            return {"text": np.asarray(whole(self.part, ids, mask)), "mask": mask}

    @property
    def first_null(self) -> dict[str, np.ndarray]:
        """{"text": (M, T), "mask": (M,)} of the empty prompt, as shards keep it."""
        return {name: value[0] for name, value in self.null.items()}


def texts_of(run: Run) -> Texts:
    """The text encoder of a run that is conditioned on text. Raises ValueError."""
    data = run.config.data
    return Texts(run.codecs, run.mesh, data.text_tokens, data.text_width)
