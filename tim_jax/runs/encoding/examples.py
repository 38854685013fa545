"""Encodes examples as they are read into examples as shards hold them, in batches on the devices of this process.

A batch is made of examples of one shard alone, and every device always has the same number of them, so that what an
example is encoded to depends neither on other shards nor on the number of hosts, and one program is compiled for each
shape.
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
from tim_jax.runs.encoders import BatchEncoder
from tim_jax.runs.encoders.batches import Modules
from tim_jax.runs.encoding.work import Work
from tim_jax.training import sharding
from tim_jax.training.sharding import on_mesh

# What a device takes at a time, at most: few enough to fit, and for little of a shard's last batches to be padding.
MAX_PIXELS, MAX_TOKENS, MAX_EXAMPLES = 2**20, 2**12, 32
SHARE = 1 / 8  # of the examples of one shape that a shard has on average


class Batch(NamedTuple):
    """Examples to encode together.

    Attributes:
        program: what is to be done with the arrays.
        numbers: of the examples that the arrays belong to; entries beyond them are padding.
        arrays: the program's arguments, (B, …).
    """

    program: Callable
    numbers: list[int]
    arrays: tuple[np.ndarray, ...]


class ExampleEncoder:
    """Encodes the examples of a shard with the pretrained modules of a run, on the mesh of this process.

    Args:
        run: of `local_run`.
        work: what is encoded.

    Raises:
        ValueError: if a module does not fit the configuration.
    """

    def __init__(self, run: Run, work: Work):
        self.run, self.encoder = run, BatchEncoder(run)
        self.texts, self.modules = self.encoder.texts, self.encoder.modules
        self.keeps_images = "autoencoder" not in self.modules
        self._at_a_time = {
            bucket.shape: self._count(MAX_PIXELS / math.prod(bucket.shape), sum(bucket.images) / work.shards)
            for bucket in work.plan.buckets
        }
        if self.texts:
            self._texts_at_a_time = self._count(MAX_TOKENS / self.texts.length, work.plan.images() / work.shards)
        self._images, self._texts = jax.jit(self._encode_images), jax.jit(self._encode_texts)

    @property
    def null(self) -> dict[str, np.ndarray]:
        """The condition of the empty prompt, {"text": (M, T), "mask": (M,)}; {} without texts."""
        return self.texts.null_of_shards if self.texts else {}

    def __call__(self, rows: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Encodes the examples of a shard.

        Args:
            rows: the examples, as `Reading` gives them.

        Returns:
            The examples as `shard_files.pack` takes them, and the lines of bad records.
        """
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
            return batch, batch.program(self.modules, *(jax.device_put(array, where) for array in batch.arrays))

    def _batches(self, rows: Iterable[dict], made: dict[int, dict], bad: list[dict]) -> Iterator[Batch]:
        """Full batches as soon as there are any, then the rest. Enters into `made` and `bad` what needs no device."""
        images: dict[tuple[int, int], list] = defaultdict(list)
        texts: list[tuple] = []
        for number, row in enumerate(rows):
            if "bad" in row:
                bad.append(row["bad"])
                continue
            image = row.pop("image")
            made[number] = row | ({"image": png(image)} if self.keeps_images else {})
            if self.modules.keys() & {"autoencoder", "image_encoder"}:
                shape = image.shape[:2]
                images[shape].append((number, data.normalise(image)))
                if len(images[shape]) == self._at_a_time[shape]:
                    yield self._batch(self._images, images.pop(shape), self._at_a_time[shape])
            if self.texts:
                ids, mask = self.texts.tokenizer(row["captions"], self.texts.length)
                texts += ((number, *pair) for pair in zip(ids, mask, strict=True))
                while len(texts) >= self._texts_at_a_time:
                    yield self._batch(self._texts, texts[: self._texts_at_a_time], self._texts_at_a_time)
                    texts = texts[self._texts_at_a_time :]
        for shape, waiting in images.items():
            yield self._batch(self._images, waiting, self._at_a_time[shape])
        if texts:
            yield self._batch(self._texts, texts, self._texts_at_a_time)

    def _batch(self, program: Callable, waiting: list[tuple], count: int) -> Batch:
        """A batch of `count` examples, filled up with the first of those that wait."""
        full = waiting + waiting[:1] * (count - len(waiting))
        numbers, *arrays = zip(*full, strict=True)
        return Batch(program, list(numbers[: len(waiting)]), tuple(np.stack(array) for array in arrays))

    def _count(self, fit: float, of_shard: float) -> int:
        """The examples of a batch, where so many fit on a device and a shard has so many."""
        return sharding.batch_shards(self.run.mesh) * max(1, min(int(fit), MAX_EXAMPLES, math.ceil(SHARE * of_shard)))

    def _encode_images(self, modules: Modules, images: jax.Array) -> dict[str, jax.Array]:
        """{"latent" (B, 2, C, h, w) or "moments", "features" (B, 2, h', w', Z)} of images and their mirror images."""
        side, encoded = self.run.inputs.augmentation.side, {}
        both = lambda f: jnp.stack([f(modules, images), f(modules, images[:, :, ::-1])], axis=1)  # noqa: E731
        if "autoencoder" in modules and self.run.codecs.latents == "sample":
            moments = both(lambda *given: jnp.concatenate(self.encoder.scaled_moments(*given), -1))
            encoded["moments"] = jnp.moveaxis(moments, -1, 2)
        elif "autoencoder" in modules:
            encoded["latent"] = jnp.moveaxis(both(self.encoder.latents), -1, 2)
        if "image_encoder" in modules:
            features = both(self.encoder.features)
            grid = (images.shape[1] // side, images.shape[2] // side)
            encoded["features"] = features.reshape(*features.shape[:2], *grid, features.shape[-1])
        return self._sharded(encoded)

    def _encode_texts(self, modules: Modules, ids: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        """`text` (B, M, T) of tokens (B, M)."""
        assert self.texts is not None, "text to encode"
        features = self.texts.features(modules["text_encoder"], ids, mask)
        return self._sharded({"text": features.astype(jnp.bfloat16)})

    def _sharded(self, encoded: dict[str, jax.Array]) -> dict[str, jax.Array]:
        where = sharding.batch_sharding(self.run.mesh)
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, where), encoded)


def png(image: np.ndarray) -> bytes:
    """The bytes of a PNG file of an image (H, W, c), uint8."""
    with io.BytesIO() as file:
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "png")
        return file.getvalue()
