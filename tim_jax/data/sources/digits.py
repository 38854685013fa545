"""The 1,797 handwritten digits of scikit-learn, 8x8, written once as a TensorFlow Datasets data set."""

import io
from collections import Counter
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from tim_jax.data.sources.base import InMemory, Location, Source
from tim_jax.data.sources.tfds import TfdsSource, prepare

HELD_OUT_EVERY = 5


def split_rows(labels: np.ndarray) -> dict[str, list[int]]:
    """Which rows are held out: of each class, in scikit-learn's order, every fifth example (the 5th, 10th, ...).

    labels: (n,). Returns the row numbers of "train" and "held_out", ascending.
    """
    seen, rows = Counter(), {"train": [], "held_out": []}
    for i, label in enumerate(labels.tolist()):
        seen[label] += 1
        rows["train" if seen[label] % HELD_OUT_EVERY else "held_out"].append(i)
    return rows


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Ink from 0 to 16 as round(255 v / 16), uint8; any shape."""
    return np.rint(values * (255 / 16)).astype(np.uint8)


def encode_png(image: np.ndarray) -> bytes:
    """A uint8 (h, w) image as PNG bytes: TensorFlow Datasets takes encoded bytes as they are, without TensorFlow."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


class Digits(tfds.core.GeneratorBasedBuilder):
    """Splits `train` and `held_out` of scikit-learn's digits, rows in scikit-learn's order."""

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded, so there are no checksums to find beside this file (looking needs importlib_resources,
    # which TensorFlow Datasets does not declare).
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
        return {split: self._generate_examples(rows) for split, rows in split_rows(load_digits().target).items()}

    def _generate_examples(self, rows: list[int]) -> Iterator[tuple[int, dict]]:
        digits = load_digits()
        images = to_uint8(digits.images)
        for i in rows:
            yield i, {"image": encode_png(images[i]), "label": int(digits.target[i])}


def digits(at: Location) -> Source:
    """The digits, written below `directory` on first use; split: "train" or "held_out"."""
    return InMemory(TfdsSource(prepare(Digits, at.directory), at.split))
