"""Examples as images, and images as examples."""

import functools
from typing import Literal

import jax
import numpy as np

from tim_jax.config.run import Run
from tim_jax.runs.encoders.module import FrozenModule, in_tiles, open_module
from tim_jax.training import sharding
from tim_jax.training.sharding import on_mesh


class Pixels:
    """The decoder of examples that are images themselves."""

    factor = 1

    def load(self) -> None:
        """There is nothing to read."""

    def __call__(self, examples: np.ndarray) -> np.ndarray:
        """The examples."""
        return examples

    def encode(self, images: np.ndarray) -> np.ndarray:
        """The images."""
        return images


class Decoder:
    """The run's autoencoder: images (n, H, W, c) in about [−1, 1] from latents (n, h, w, C), and back.

    Raises ValueError if the autoencoder's latents are not the run's examples.

    Attributes:
        factor: pixels per position of a latent.
    """

    def __init__(self, run: Run):
        self.run = run
        described = run.codecs.describe()
        self.factor, channels = described.factor, described.config.latent_channels
        if run.image_shape[-1] != channels:
            raise ValueError(
                f"data.channels is {run.image_shape[-1]}; it must be {channels}, as the latents of "
                f"{run.codecs.autoencoder} (codecs.autoencoder) have"
            )
        here, there = run.data.latent_scale, getattr(described.config, "scaling_factor", 0.0)
        if here and there and here != there:
            raise ValueError(
                f"data.latent_scale is {here}; it must be {there}, by which the latents of {run.codecs.autoencoder} "
                "(codecs.autoencoder) are scaled"
            )
        self._apply = jax.jit(
            lambda module, x, method: in_tiles(run.codecs, module, method, x),
            static_argnums=2,
            out_shardings=sharding.replicated(run.mesh),
        )

    @functools.cached_property
    def _module(self) -> FrozenModule:
        return open_module(self.run.codecs, "autoencoder", self.run.mesh)

    def load(self) -> None:
        """Reads the weights now, which otherwise the first call does. Raises ValueError."""
        _ = self._module

    def __call__(self, examples: np.ndarray) -> np.ndarray:
        """Images (n, H, W, c) of latents (n, h, w, C) that every process knows."""
        return self._run(examples, "decode")

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Latents (n, h, w, C), the means, of images (n, H, W, c) that every process knows."""
        return self._run(images, "encode")

    def _run(self, x: np.ndarray, method: Literal["decode", "encode"]) -> np.ndarray:
        count, shards = len(x), sharding.batch_shards(self.run.mesh)
        x = np.resize(x, (-(-count // shards) * shards, *x.shape[1:]))
        where = sharding.batch_sharding(self.run.mesh)
        placed = jax.make_array_from_callback(x.shape, where, lambda index: x[index])
        with on_mesh(self.run.mesh):
            return np.asarray(self._apply(self._module, placed, method))[:count]


def open_decoder(run: Run) -> Pixels | Decoder | None:
    """What turns a run's examples into images; None for latents without `codecs.autoencoder`. Raises ValueError."""
    if run.codecs.autoencoder:
        return Decoder(run)
    return Pixels() if run.shows_images else None
