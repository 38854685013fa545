"""Rows as they are read → rows as shards hold them, by batches on the devices of this process.

A batch is made of the rows of one shard alone, and every device always has the same number of them, so that what is
made of a row depends neither on other shards nor on the number of hosts, and one program is compiled for each shape.
"""

import io
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from tim_jax import data
from tim_jax.config.run import Run
from tim_jax.runs.encoders import Encoder, FrozenModule
from tim_jax.runs.encoding.work import Work
from tim_jax.training import sharding
from tim_jax.training.sharding import on_mesh

# What a device takes at a time, at most: few enough that it fits, and that little of a shard's last batches is filling.
PIXELS, TOKENS, MOST = 2**20, 2**12, 32
SHARE = 1 / 8  # of the rows of one shape that a shard has on average


class Batch(NamedTuple):
    """program: what is to be done with the arrays. numbers: of the rows that they belong to; the rest only fills up."""

    program: Callable
    numbers: list[int]
    arrays: tuple[np.ndarray, ...]


class RowEncoder:
    """The frozen parts of a run on the mesh of this process. Raises ValueError if a part does not fit."""

    def __init__(self, run: Run, work: Work):
        self.run, self.encoder = run, Encoder(run)
        self.texts, self.parts = self.encoder.texts, self.encoder.parts
        self.keeps_images = "autoencoder" not in self.parts
        self._rows = {
            bucket.shape: self._at_a_time(PIXELS / math.prod(bucket.shape), sum(bucket.images) / work.shards)
            for bucket in work.plan.buckets
        }
        if self.texts:
            self._rows_of_texts = self._at_a_time(TOKENS / self.texts.length, work.plan.images() / work.shards)
        self._images, self._texts = jax.jit(self._of_images), jax.jit(self._of_texts)

    @property
    def null(self) -> dict[str, np.ndarray]:
        """`text` (M, T) and `mask` (M,) of the empty prompt; {} without texts."""
        return self.texts.first_null if self.texts else {}

    def __call__(self, rows: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """(rows as `shard_files.pack` takes them, lines of bad records) of the rows of a shard, as `Reading` gives
        them."""
        made: dict[int, dict[str, Any]] = {}
        bad: list[dict[str, Any]] = []
        for batch, results in data.prefetch_to_device(self._batches(rows, made, bad), self._begin):
            results = {name: np.asarray(value) for name, value in results.items()}
            for i, number in enumerate(batch.numbers):
                if "text" in results:
                    length = int(batch.arrays[1][i].sum())
                    made[number].setdefault("texts", []).append(results["text"][i, :length].copy())
                else:
                    made[number] |= {name: value[i] for name, value in results.items()}
        return list(made.values()), bad

    def _begin(self, batch: Batch) -> tuple[Batch, dict[str, jax.Array]]:
        where = sharding.batch_sharding(self.run.mesh)
        with on_mesh(self.run.mesh):
            return batch, batch.program(self.parts, *(jax.device_put(array, where) for array in batch.arrays))

    def _batches(self, rows: Iterable[dict], made: dict[int, dict], bad: list[dict]) -> Iterator[Batch]:
        """Full batches as they come up, then what is left. Enters into `made` and `bad` what needs no device."""
        images, texts = defaultdict(list), []
        for number, row in enumerate(rows):
            if "bad" in row:
                bad.append(row["bad"])
                continue
            image = row.pop("image")
            made[number] = row | ({"image": png(image)} if self.keeps_images else {})
            if self.parts.keys() & {"autoencoder", "image_encoder"}:
                shape = image.shape[:2]
                images[shape].append((number, data.normalise(image)))
                if len(images[shape]) == self._rows[shape]:
                    yield self._batch(self._images, images.pop(shape), self._rows[shape])
            if self.texts:
                ids, mask = self.texts.tokenizer(row["captions"], self.texts.length)
                texts += ((number, *pair) for pair in zip(ids, mask, strict=True))
                while len(texts) >= self._rows_of_texts:
                    yield self._batch(self._texts, texts[: self._rows_of_texts], self._rows_of_texts)
                    texts = texts[self._rows_of_texts :]
        for shape, waiting in images.items():
            yield self._batch(self._images, waiting, self._rows[shape])
        if texts:
            yield self._batch(self._texts, texts, self._rows_of_texts)

    def _batch(self, program: Callable, waiting: list[tuple], rows: int) -> Batch:
        """The first of the waiting again and again where they do not fill the rows."""
        full = waiting + waiting[:1] * (rows - len(waiting))
        numbers, *arrays = zip(*full, strict=True)
        return Batch(program, list(numbers[: len(waiting)]), tuple(np.stack(array) for array in arrays))

    def _at_a_time(self, fit: float, of_shard: float) -> int:
        """Rows of a batch, of which so many fit on a device and a shard has so many."""
        return sharding.batch_shards(self.run.mesh) * max(1, min(int(fit), MOST, math.ceil(SHARE * of_shard)))

    def _of_images(self, parts: dict[str, FrozenModule], images: jax.Array) -> dict[str, jax.Array]:
        """`latent` (B, 2, C, h, w) or `moments`, and `features` (B, 2, rows, columns, Z): of images, mirrored too."""
        side, made = self.run.inputs.augmentation.side, {}
        both = lambda f: jnp.stack([f(parts, images), f(parts, images[:, :, ::-1])], axis=1)  # noqa: E731
        if "autoencoder" in parts and self.run.codecs.latents == "sample":
            moments = both(lambda *given: jnp.concatenate(self.encoder.scaled_moments(*given), -1))
            made["moments"] = jnp.moveaxis(moments, -1, 2)
        elif "autoencoder" in parts:
            made["latent"] = jnp.moveaxis(both(self.encoder.latents), -1, 2)
        if "image_encoder" in parts:
            features = both(self.encoder.features)
            grid = (images.shape[1] // side, images.shape[2] // side)
            made["features"] = features.reshape(*features.shape[:2], *grid, features.shape[-1])
        return self._by_rows(made)

    def _of_texts(self, parts: dict[str, FrozenModule], ids: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        """`text` (B, M, T) of tokens (B, M)."""
        features = self.texts.features(parts["text_encoder"], ids, mask)
        return self._by_rows({"text": features.astype(jnp.bfloat16)})

    def _by_rows(self, made: dict[str, jax.Array]) -> dict[str, jax.Array]:
        where = sharding.batch_sharding(self.run.mesh)
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, where), made)


def png(image: np.ndarray) -> bytes:
    """The bytes of a file of an image (H, W, c), uint8."""
    with io.BytesIO() as file:
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "png")
        return file.getvalue()
