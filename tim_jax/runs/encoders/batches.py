"""Examples that are encoded as they are read."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.config.objective import inputs_of
from tim_jax.config.run import Run
from tim_jax.data.fit import PIXELS_PER_TOKEN
from tim_jax.runs.encoders.images import open_decoder
from tim_jax.runs.encoders.module import FrozenModule, by_tiles, in_tiles, open_module
from tim_jax.runs.encoders.texts import open_text_encoder
from tim_jax.training import sharding
from tim_jax.training.sharding import on_mesh

Modules = dict[str, FrozenModule]  # by their keys in `codecs`


class BatchEncoder:
    """Turns batches as sources have them into batches as a train step takes them.

    Images become latents, captions and images become features, with `data.encode`; without it examples are latents
    already, and features are made of the images beside them (`data.images`).

    Its methods that take `modules` are to be traced, with `self.modules`.

    Raises ValueError if a module does not fit the configuration.

    Attributes:
        modules: the frozen modules that the configuration needs, by their keys in `codecs`.
        texts: the text encoder; None for a run conditioned on labels.
    """

    def __init__(self, run: Run):
        self.run = run
        width, settings = run.data.features_width, run.codecs
        self.modules: Modules = {}
        if settings.autoencoder and run.data.encode:
            open_decoder(run)  # its channels fit
            self.modules["autoencoder"] = open_module(settings, "autoencoder", run.mesh)
        if width:
            encoder = self.modules["image_encoder"] = open_module(settings, "image_encoder", run.mesh)
            if encoder.module.width != width:
                raise ValueError(
                    f"data.features_width is {width}; it must be {encoder.module.width}, as {settings.image_encoder} "
                    "(codecs.image_encoder) has it"
                )
        self.texts = open_text_encoder(run) if run.config.model.condition == "text" else None
        if self.texts:
            self.modules["text_encoder"] = self.texts.module
        self._apply = jax.jit(self._encode)

    def latents(self, modules: Modules, images: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Examples (B, h, w, C) of images (B, H, W, 3): means, or samples by random keys (B,)."""
        if "autoencoder" not in modules:
            return images
        autoencoder = modules["autoencoder"]
        if keys is None:
            return in_tiles(self.run.codecs, autoencoder, "encode", images)
        return autoencoder(*self.moments(modules, images), keys, method="latents")

    def moments(self, modules: Modules, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(mean, log variance), both (B, h, w, C), of latents that are not yet scaled."""
        together = lambda x: jnp.concatenate(modules["autoencoder"](x, method="moments"), -1)  # noqa: E731
        mean, logvar = jnp.split(by_tiles(self.run.codecs.tile, together, images), 2, -1)
        return mean, logvar

    def scaled_moments(self, modules: Modules, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(mean, log variance), both (B, h, w, C), of latents."""
        return modules["autoencoder"](*self.moments(modules, images), method="scaled")

    def features(self, modules: Modules, images: jax.Array, side: int = 0) -> jax.Array:
        """Features (B, N, Z) of images (B, H, W, 3), one for each token of their examples.

        Args:
            modules: among them "image_encoder".
            images: of which they are.
            side: pixels for a token; by default those of images that are encoded.
        """
        grid = tuple(length // (side or self.run.inputs.augmentation.side) for length in images.shape[1:3])
        return modules["image_encoder"](images, grid, method="features")

    def __call__(self, batch: dict[str, np.ndarray], step: int) -> dict[str, jax.Array]:
        """Encodes the batch of a step.

        Args:
            batch: this process's examples of the global batch, as `input_pipeline.images_spec` describes them.
            step: of training, by which latents are sampled.

        Returns:
            The global batch as a train step takes it, on the mesh.
        """
        inputs = {name: batch[name] for name in ("x", *inputs_of(self.run.config))}
        if self.run.data.images:
            inputs["original"] = batch["original"]
        if self.texts and self.texts.memory:
            inputs |= self.texts.memory(batch["caption"].tolist())
        elif self.texts:
            ids, mask = self.texts.tokenizer(batch["caption"].tolist(), self.texts.length)
            inputs |= {"ids": ids, "mask": mask}
        else:
            inputs["label"] = batch["label"]
        placed = sharding.put_batch(self.run.mesh, inputs)
        with on_mesh(self.run.mesh):
            encoded = self._apply(self.modules, placed, np.uint32(step))
        return encoded | self._null

    @functools.cached_property
    def _null(self) -> dict[str, jax.Array]:
        """The condition of the empty prompt; {} for a run conditioned on labels."""
        null = self.texts.null if self.texts else {}
        return sharding.put_batch(self.run.mesh, {f"null_{name}": value for name, value in null.items()})

    def _encode(self, modules: Modules, batch: dict[str, jax.Array], step: jax.Array) -> dict[str, Any]:
        images, encoded = batch["x"], {}
        # Keys are separate from those of train steps, which are folded into the same seed by their own numbers.
        for name, number in (("x", 2**32 - 1), ("loser", 2**32 - 2)):
            if name in batch:
                keys = None
                if self.run.data.encode and self.run.codecs.latents == "sample":
                    key = jax.random.fold_in(jax.random.key(self.run.config.seed), np.uint32(number))
                    keys = jax.random.split(jax.random.fold_in(key, step), len(images))
                encoded[name] = self.latents(modules, batch[name], keys)
        if "reward" in batch:
            encoded["reward"] = batch["reward"]
        if "original" in batch:
            encoded["features"] = self.features(modules, batch["original"], PIXELS_PER_TOKEN)
        elif "image_encoder" in modules:
            encoded["features"] = self.features(modules, images)
        if "features" in encoded:
            encoded["features_mask"] = jnp.ones(len(images), bool)
        if self.texts:
            if "text" in batch:
                encoded["text"] = batch["text"]
            else:
                encoded["text"] = self.texts.features(modules["text_encoder"], batch["ids"], batch["mask"])
            encoded["mask"] = batch["mask"]
        else:
            encoded["label"] = batch["label"]
        where = sharding.batch_sharding(self.run.mesh)
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, where), encoded)
