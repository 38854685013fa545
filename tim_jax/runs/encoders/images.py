"""Rows as images, and images as rows."""

import functools

import jax
import numpy as np

from tim_jax.config.run import Run
from tim_jax.runs.encoders.module import FrozenModule, in_tiles, open_module
from tim_jax.training import sharding
from tim_jax.training.sharding import on_mesh


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
    def _part(self) -> FrozenModule:
        return open_module(self.run.codecs, "autoencoder", self.run.mesh)

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
    return Pixels() if run.shows_images else None
