"""Rows that are encoded as they are read."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.config.run import Run
from tim_jax.runs.encoders.images import decoder_of
from tim_jax.runs.encoders.module import FrozenModule, by_tiles, in_tiles, open_module
from tim_jax.runs.encoders.texts import texts_of
from tim_jax.training import sharding
from tim_jax.training.sharding import on_mesh


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
            self.parts["autoencoder"] = open_module(settings, "autoencoder", run.mesh)
        if data.features_width:
            part = self.parts["image_encoder"] = open_module(settings, "image_encoder", run.mesh)
            if part.module.width != data.features_width:
                raise ValueError(
                    f"data.features_width is {data.features_width}; {settings.image_encoder} (codecs.image_encoder) "
                    f"has {part.module.width}"
                )
        self.texts = texts_of(run) if run.config.model.condition == "text" else None
        if self.texts:
            self.parts["text_encoder"] = self.texts.part
        self._apply = jax.jit(self._encode)

    def latents(self, parts: dict[str, FrozenModule], images: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Rows (B, h, w, C) of images (B, H, W, 3): means, or samples by keys (B,). To be traced."""
        if "autoencoder" not in parts:
            return images
        part = parts["autoencoder"]
        if keys is None:
            return in_tiles(self.run.codecs, part, "encode", images)
        return part(*self.moments(parts, images), keys, method="latents")

    def moments(self, parts: dict[str, FrozenModule], images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(mean, log variance), both (B, h, w, C), of what is not yet scaled. To be traced."""
        together = lambda x: jnp.concatenate(parts["autoencoder"](x, method="moments"), -1)  # noqa: E731
        return tuple(jnp.split(by_tiles(self.run.codecs.tile, together, images), 2, -1))

    def scaled_moments(self, parts: dict[str, FrozenModule], images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(mean, log variance), both (B, h, w, C), of rows. To be traced."""
        return parts["autoencoder"](*self.moments(parts, images), method="scaled")

    def features(self, parts: dict[str, FrozenModule], images: jax.Array) -> jax.Array:
        """(B, tokens, Z) of images (B, H, W, 3): one feature for each token of their rows. To be traced."""
        grid = tuple(side // self.run.inputs.augmentation.side for side in images.shape[1:3])
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
        return made | self._null

    @functools.cached_property
    def _null(self) -> dict[str, jax.Array]:
        """The condition of the empty prompt, {} where there are labels."""
        null = self.texts.null if self.texts else {}
        return sharding.put_batch(self.run.mesh, {f"null_{name}": value for name, value in null.items()})

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
