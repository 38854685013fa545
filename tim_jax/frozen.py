"""The frozen parts that a run's `codecs` section names, at work on a mesh: images to latents and back, texts and images
to features. Weights are whole on every device, rows over data and fsdp."""

import functools
import sys
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tim_jax import codecs
from tim_jax.codecs import stand_in
from tim_jax.codecs.settings import CodecSettings
from tim_jax.codecs.tokenizer import BYTES, Tokenizer, open_tokenizer
from tim_jax.config import Run
from tim_jax.training import sharding
from tim_jax.training.loop import on_mesh


class Part(flax.struct.PyTreeNode):
    """A module with its weights on a mesh."""

    params: Any
    module: nn.Module = flax.struct.field(pytree_node=False)

    def __call__(self, *args: Any, method: str = "__call__") -> Any:
        return self.module.apply({"params": self.params}, *args, method=method)


def open_part(settings: CodecSettings, part: str, mesh: Mesh) -> Part:
    """ "autoencoder", "text_encoder" or "image_encoder", ready for work. Raises ValueError with one line."""
    module, params = settings.load(part)
    if getattr(settings, part) == stand_in.NAME and jax.process_index() == 0:
        print("codecs.text_encoder is a stand-in with random weights: it knows nothing of language", file=sys.stderr)
    whole = sharding.replicated(mesh)
    place = lambda x: jax.make_array_from_callback(x.shape, whole, lambda index: np.asarray(x)[index])  # noqa: E731
    return Part(jax.tree.map(place, params), module)


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
    def part(self) -> Part:
        """The text encoder, read when it is asked for. Raises ValueError."""
        return open_part(self.settings, "text_encoder", self.mesh)

    def check(self, prompts: Sequence[str]) -> None:
        """Raises ValueError, naming it, for a prompt that is empty, too long or no text."""
        self.tokenizer(prompts, self.length, strict=True)

    def features(self, part: Part, ids: jax.Array, mask: jax.Array) -> jax.Array:
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


def texts_of(run: Run) -> Texts:
    """The text encoder of a run that is conditioned on text. Raises ValueError."""
    data = run.config.data
    return Texts(run.codecs, run.mesh, data.text_tokens, data.text_width)


class Pixels:
    """Images of rows that are images themselves."""

    factor = 1

    def load(self) -> None:
        """There is nothing to read."""

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return rows

    def rows(self, images: np.ndarray) -> np.ndarray:
        return images


class Decoder:
    """Images (n, H, W, C) in about [−1, 1] of rows (n, h, w, C'), and back, by the run's autoencoder.

    factor: pixels per position of a row. Raises ValueError if the autoencoder is not one of the run's rows.
    """

    def __init__(self, run: Run):
        self.run, self._module = run, run.codecs.describe()
        self.factor = self._module.factor
        found = self._module.config.latent_channels
        if run.image_shape[-1] != found:
            raise ValueError(
                f"data.channels is {run.image_shape[-1]}; the latents of {run.codecs.autoencoder} "
                f"(codecs.autoencoder) have {found}"
            )
        self._apply = jax.jit(
            lambda part, x, method: in_tiles(run.codecs, part, method, x),
            static_argnums=2,
            out_shardings=sharding.replicated(run.mesh),
        )

    @functools.cached_property
    def _part(self) -> Part:
        return open_part(self.run.codecs, "autoencoder", self.run.mesh)

    def load(self) -> None:
        """Reads the weights, which otherwise the first call does. Raises ValueError."""
        self._part  # noqa: B018

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """rows: known to every process."""
        return self._of(rows, "decode")

    def rows(self, images: np.ndarray) -> np.ndarray:
        """Rows (n, h, w, C') of images (n, H, W, C) that every process knows: the means."""
        return self._of(images, "encode")

    def _of(self, x: np.ndarray, method: str) -> np.ndarray:
        count, shards = len(x), sharding.batch_shards(self.run.mesh)
        x = np.resize(x, (-(-count // shards) * shards, *x.shape[1:]))
        x = jax.make_array_from_callback(x.shape, sharding.batch_sharding(self.run.mesh), lambda index, x=x: x[index])
        with on_mesh(self.run.mesh):
            return np.asarray(self._apply(self._part, x, method))[:count]


def decoder_of(run: Run) -> Pixels | Decoder | None:
    """Rows → images; None where rows are latents and no autoencoder is named. Raises ValueError."""
    if run.codecs.autoencoder:
        return Decoder(run)
    return Pixels() if run.image_shape[-1] in (1, 3) else None


def in_tiles(settings: CodecSettings, part: Part, method: str, x: jax.Array, *args: Any) -> Any:
    """part.method(x), of large images by tiles of `codecs.tile` pixels that overlap by a quarter."""
    f = lambda x: part(x, *args, method=method)  # noqa: E731
    tile = settings.tile // part.module.factor if method == "decode" else settings.tile
    return codecs.tiled(f, x, tile, tile // 4) if tile else f(x)


class Encoder:
    """Batches of images and captions, as sources have them → batches as a train step takes them.

    Raises ValueError if a part does not fit the configuration.
    """

    def __init__(self, run: Run):
        self.run = run
        data, settings = run.config.data, run.codecs
        self.parts = {}
        if settings.autoencoder:
            decoder_of(run)  # its channels fit
            self.parts["autoencoder"] = open_part(settings, "autoencoder", run.mesh)
        if data.features_width:
            part = self.parts["image_encoder"] = open_part(settings, "image_encoder", run.mesh)
            if part.module.width != data.features_width:
                raise ValueError(
                    f"data.features_width is {data.features_width}; {settings.image_encoder} (codecs.image_encoder) "
                    f"has {part.module.width}"
                )
        self.texts = texts_of(run) if run.config.model.condition == "text" else None
        if self.texts:
            self.parts["text_encoder"] = self.texts.part
        self._apply = jax.jit(self._encode)

    def latents(self, parts: dict[str, Part], images: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Rows (B, h, w, C) of images (B, H, W, 3): means, or samples by keys (B,). To be traced."""
        if "autoencoder" not in parts:
            return images
        part = parts["autoencoder"]
        if keys is None:
            return in_tiles(self.run.codecs, part, "encode", images)
        return part(*self.moments(parts, images), keys, method="latents")

    def moments(self, parts: dict[str, Part], images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(mean, log variance), both (B, h, w, C), of what is not yet scaled. To be traced."""
        both = lambda x: jnp.concatenate(parts["autoencoder"](x, method="moments"), -1)  # noqa: E731
        tile = self.run.codecs.tile
        both = codecs.tiled(both, images, tile, tile // 4) if tile else both(images)
        return tuple(jnp.split(both, 2, -1))

    def scaled_moments(self, parts: dict[str, Part], images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(mean, log variance), both (B, h, w, C), of rows. To be traced."""
        return parts["autoencoder"](*self.moments(parts, images), method="scaled")

    def features(self, parts: dict[str, Part], images: jax.Array) -> jax.Array:
        """(B, tokens, Z) of images (B, H, W, 3): one feature for each token of their rows. To be traced."""
        grid = tuple(side // self.run.data.look.side for side in images.shape[1:3])
        return parts["image_encoder"](images, grid, method="features")

    def __call__(self, batch: dict[str, np.ndarray], step: int) -> dict[str, jax.Array]:
        """This process's rows of the global batch of a step → the encoded batch, on the mesh."""
        given = {"x": batch["x"]}
        if self.texts:
            ids, mask = self.texts.tokenizer(batch["caption"].tolist(), self.texts.length)
            given |= {"ids": ids, "mask": mask}
        else:
            given["label"] = batch["label"]
        given = sharding.put_batch(self.run.mesh, given)
        with on_mesh(self.run.mesh):
            made = self._apply(self.parts, given, np.uint32(step))
        if not self.texts:
            return made
        null = {f"null_{name}": value for name, value in self.texts.null.items()}
        return made | sharding.put_batch(self.run.mesh, null)

    def _encode(self, parts, batch, step):
        images, keys = batch["x"], None
        if self.run.codecs.latents == "sample":
            # Apart from the keys of train steps, which are folded into the same seed by their own numbers.
            apart = jax.random.fold_in(jax.random.key(self.run.config.seed), np.uint32(2**32 - 1))
            keys = jax.random.split(jax.random.fold_in(apart, step), len(images))
        made = {"x": self.latents(parts, images, keys)}
        if "image_encoder" in parts:
            made["features"] = self.features(parts, images)
            made["features_mask"] = jnp.ones(len(images), bool)
        if "text_encoder" in parts:
            made["text"] = self.texts.features(parts["text_encoder"], batch["ids"], batch["mask"])
            made["mask"] = batch["mask"]
        else:
            made["label"] = batch["label"]
        where = sharding.batch_sharding(self.run.mesh)
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, where), made)
