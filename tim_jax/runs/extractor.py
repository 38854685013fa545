"""Features of images, computed on a run's mesh."""

from collections.abc import Iterator

import jax
import numpy as np

from tim_jax.config.run import Run
from tim_jax.evaluation import duplicates
from tim_jax.evaluation.features import Features
from tim_jax.runs.reference_data import ImageSet
from tim_jax.system.progress import Activity, Bar
from tim_jax.training import sharding
from tim_jax.training.sharding import on_mesh

Stream = Iterator[tuple[dict[str, np.ndarray], np.ndarray]]  # ({output: (n, d)}, numbers of the images (n,))


class Extractor:
    """Computes features of images, in batches of one size that lie over the devices of a run's mesh.

    All processes do the same: each reads and computes its devices' share of the images, and features come back whole.

    Args:
        run: whose mesh and `evaluation.batch_size` are used.
        features: what is computed.
    """

    def __init__(self, run: Run, features: Features):
        self.mesh = run.mesh
        shards = sharding.batch_shards(run.mesh)
        self.batch_size = -(-run.evaluation.batch_size // shards) * shards
        whole = sharding.replicated(run.mesh)
        self._variables = jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, whole, lambda index: x[index]), features.variables
        )
        self._apply = jax.jit(features.apply, out_shardings=whole)
        self._gather = jax.jit(lambda x: x, out_shardings=whole)
        self._compiled = False

    def local(self, batch: np.ndarray) -> np.ndarray:
        """This process's share of a whole batch (batch_size, …)."""
        shares = np.split(batch, sharding.batch_shards(self.mesh))
        return np.concatenate([shares[i] for i in sharding.shards_here(self.mesh)])

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Features {output: (batch_size, d)} of a whole batch, of which `images` (n, h, w, C) are this process's."""
        batch = sharding.put_batch(self.mesh, {"x": np.ascontiguousarray(images, np.float32)})
        known, self._compiled = self._compiled or jax.process_index() > 0, True
        with on_mesh(self.mesh), Activity(f"compiling the features of {self.batch_size} images", disable=known):
            outputs = self._apply(self._variables, batch["x"])
        return jax.device_get(outputs)

    def samples(self, batches: Iterator[np.ndarray]) -> Stream:
        """Features of images that all processes know.

        Args:
            batches: (n, h, w, C), each of at most `batch_size` images.

        Yields:
            The features of each batch, {output: (n, d)}, and the numbers (n,) of its images.
        """
        first = 0
        for images in batches:
            count = len(images)
            padded = np.resize(images, (self.batch_size, *images.shape[1:]))
            outputs = self(self.local(padded))
            yield {name: x[:count] for name, x in outputs.items()}, np.arange(first, first + count)
            first += count

    def real(self, images: ImageSet, title: str) -> Stream:
        """Features of real images, of which each process reads its own, with a progress bar of that title.

        Yields:
            The features of the images of a batch that can be read, {output: (n, d)}, with their digests (see
            duplicates.py), and their numbers (n,).
        """
        quiet, size = jax.process_index() > 0, self.batch_size
        for first in Bar(range(0, images.count, size), desc=title, unit="batch", disable=quiet, leave=False):
            indices = np.arange(first, first + size)
            inside = indices < images.count
            batch, found = images.read(self.local(np.minimum(indices, images.count - 1)))
            known = sharding.put_batch(self.mesh, {"found": found, "digests": duplicates.digests(batch)})
            outputs = self(batch) | {duplicates.DIGESTS[0]: np.asarray(self._gather(known["digests"]))}
            readable = np.asarray(self._gather(known["found"])) & inside
            yield {name: x[readable] for name, x in outputs.items()}, indices[readable]
