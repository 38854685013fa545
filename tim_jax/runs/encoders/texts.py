"""Captions and prompts as networks take them."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tim_jax.codecs import stand_in
from tim_jax.codecs.settings import CodecSettings
from tim_jax.codecs.tokenizer import BYTES, Tokenizer, escaped, open_tokenizer
from tim_jax.config.run import Run
from tim_jax.runs.encoders.memory import TextMemory
from tim_jax.runs.encoders.module import FrozenModule, open_module
from tim_jax.training import sharding
from tim_jax.training.sharding import on_mesh

AT_A_TIME = 2**8  # tokens that a device encodes together for the memory: few, as most texts are kept already


class TextEncoder:
    """Turns captions and prompts into the condition of a network that is conditioned on text.

    Args:
        settings: the section `codecs`.
        mesh: whose devices share the texts of a batch.
        length: M, tokens of a text, padding included.
        width: T, of a token's feature.

    Raises:
        ValueError: if no text encoder is named, or its features have another width.
    """

    def __init__(self, settings: CodecSettings, mesh: Mesh, length: int, width: int):
        if not settings.text_encoder:
            raise ValueError(
                "codecs.text_encoder is ''; it must be the folder of the text encoder, with its tokenizer, that the "
                "features "
                "trained on are of"
            )
        self.settings, self.mesh, self.length, self.width = settings, mesh, length, width
        config = settings.describe_text_encoder().config
        if config.hidden_size != width:
            raise ValueError(
                f"data.text_width is {width}; it must be {config.hidden_size}, as {settings.text_encoder} "
                "(codecs.text_encoder) has it"
            )
        longest = getattr(config, "max_position_embeddings", length)  # of encoders with a table of positions
        if length > longest:
            raise ValueError(
                f"data.text_tokens is {length}; it must be at most {longest}, as {settings.text_encoder} "
                "(codecs.text_encoder) reads no longer text"
            )
        stands_in = settings.text_encoder == stand_in.NAME
        tokenizer: Tokenizer = BYTES if stands_in else open_tokenizer(settings.text_encoder, config.vocab_size)
        self.tokenizer = escaped(tokenizer) if settings.text_escapes else tokenizer
        self._apply = jax.jit(lambda module, ids, mask: self.features(module, ids, mask))

    @functools.cached_property
    def module(self) -> FrozenModule:
        """The text encoder with its weights, read when it is first wanted. Raises ValueError."""
        return open_module(self.settings, "text_encoder", self.mesh)

    def load(self) -> None:
        """Reads the weights now. Raises ValueError."""
        _ = self.module

    def check(self, prompts: Sequence[str]) -> None:
        """Raises ValueError, naming it, for a prompt that is empty, too long or no text."""
        self.tokenizer(prompts, self.length, strict=True)

    def features(self, module: FrozenModule, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Float32 features (B, M, T) of tokens (B, M); to be traced, with `self.module`."""
        return getattr(module(ids, mask), self.settings.text_states).astype(jnp.float32)

    def __call__(self, texts: Sequence[str]) -> dict[str, jax.Array]:
        """The condition of texts that every process knows.

        Args:
            texts: B of them, a multiple of the devices that share a batch.

        Returns:
            {"text": (B, M, T), "mask": (B, M)}.
        """
        if self.memory:
            return self._placed(self.memory(texts))
        ids, mask = self.tokenizer(texts, self.length)
        placed = self._placed({"ids": ids, "mask": mask})
        with on_mesh(self.mesh):
            return {"text": self._apply(self.module, placed["ids"], placed["mask"]), "mask": placed["mask"]}

    @functools.cached_property
    def memory(self) -> TextMemory | None:
        """The conditions that this process keeps, made on its own devices; None without `codecs.text_memory`."""
        settings = dataclasses.replace(self.settings, text_memory=0)
        if settings == self.settings:
            return None
        mesh = self.mesh
        if jax.process_count() > 1:
            own = np.array(jax.local_devices()[:1]).reshape((1,) * len(mesh.axis_names))
            mesh = Mesh(own, mesh.axis_names)
        encoder = TextEncoder(settings, mesh, self.length, self.width)
        count = sharding.batch_shards(mesh) * max(1, AT_A_TIME // self.length)
        encode = lambda texts: {name: np.asarray(value) for name, value in encoder(texts).items()}  # noqa: E731
        return TextMemory(encode, count, self.settings.text_memory)

    def _placed(self, arrays: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Arrays (B, …) that every process knows, on the mesh."""
        where = sharding.batch_sharding(self.mesh)
        put = lambda x: jax.make_array_from_callback(x.shape, where, lambda index: x[index])  # noqa: E731
        return {name: put(array) for name, array in arrays.items()}

    @functools.cached_property
    def null(self) -> dict[str, np.ndarray]:
        """The condition of the empty prompt: {"text": (1, M, T), "mask": (1, M)}."""
        if self.memory:
            return self.memory([""])
        ids, mask = self.tokenizer([""], self.length)
        whole = jax.jit(lambda *args: self.features(*args), out_shardings=sharding.replicated(self.mesh))
        with on_mesh(self.mesh):
            return {"text": np.asarray(whole(self.module, ids, mask)), "mask": mask}

    @property
    def null_of_shards(self) -> dict[str, np.ndarray]:
        """The condition of the empty prompt as shards keep it: {"text": (M, T), "mask": (M,)}."""
        return {name: value[0] for name, value in self.null.items()}


def open_text_encoder(run: Run) -> TextEncoder:
    """The text encoder of a run that is conditioned on text. Raises ValueError."""
    return TextEncoder(run.codecs, run.mesh, run.data.text_tokens, run.data.text_width)
