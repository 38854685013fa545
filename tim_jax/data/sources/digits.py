"""The 1,797 handwritten digits of scikit-learn, 8x8, written once as a TensorFlow Datasets data set."""

import io
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from tim_jax.data.sources.base import InMemory, Location, Source
from tim_jax.data.sources.tfds import open_prepared, prepare

HELD_OUT_EVERY = 5


def split_indices(labels: np.ndarray) -> dict[str, list[int]]:
    """Splits the data: of each class, in scikit-learn's order, every fifth example is held out (the 5th, 10th, ...).

    Args:
        labels: those of all examples, (n,).

    Returns:
        The numbers of the examples of "train" and "held_out", ascending.
    """
    seen: Counter[int] = Counter()
    indices: dict[str, list[int]] = {"train": [], "held_out": []}
    for i, label in enumerate(labels.tolist()):
        seen[label] += 1
        indices["train" if seen[label] % HELD_OUT_EVERY else "held_out"].append(i)
    return indices


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Maps ink v from 0 to 16, of any shape, to uint8: round(255 v / 16)."""
    return np.rint(values * (255 / 16)).astype(np.uint8)


def encode_png(image: np.ndarray) -> bytes:
    """Encodes a uint8 image (h, w) as PNG: TensorFlow Datasets stores encoded bytes as they are, without TensorFlow."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _digits() -> Any:
    from sklearn.datasets import load_digits  # slow to import, and needed only where the data set is not there yet

    return load_digits()


class Digits(tfds.core.GeneratorBasedBuilder):
    """The splits `train` and `held_out` of scikit-learn's digits, examples in scikit-learn's order."""

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded, so there are no checksums to find beside this file.
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": tfds.features.Image(shape=(8, 8, 1)), "label": tfds.features.ClassLabel(num_classes=10)}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits, 8x8, from scikit-learn; every fifth of each class is held out.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(ids) for split, ids in split_indices(_digits().target).items()}

    def _generate_examples(self, indices: list[int]) -> Iterator[tuple[int, dict]]:
        digits = _digits()
        images = to_uint8(digits.images)
        for i in indices:
            yield i, {"image": encode_png(images[i]), "label": int(digits.target[i])}


def open_digits(at: Location) -> Source:
    """Opens the split "train" or "held_out" of the digits, which are written below `at.directory` on first use."""
    return InMemory(open_prepared(at, prepare(Digits, at.directory)))
