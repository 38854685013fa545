"""A source: images with labels, found by number. Everything else in this room is built on it."""

import contextlib
import dataclasses
import functools
import hashlib
import io
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image


class Source(Protocol):
    """A finite, ordered collection of labelled images with random access.

    name: for messages. num_classes: labels lie in [0, num_classes). image_shape: (h, w, c).
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        """The number of rows."""

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Row i, 0 <= i < len: {"image": uint8 (h, w, c), "label": int, "index": i}."""

    def fingerprint(self) -> str:
        """A short digest that changes when the rows do."""


def decode(encoded: bytes) -> np.ndarray:
    """An encoded greyscale or RGB image as uint8 (h, w, 1) or (h, w, 3)."""
    with Image.open(io.BytesIO(encoded)) as image:
        return np.atleast_3d(np.asarray(image, np.uint8))


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """One split of a prepared TensorFlow Datasets data set with `image` and `label` features, read without TensorFlow.

    directory: the folder of one version, in a file format with random access (ArrayRecord). split: its name there.
    Raises ValueError for a split that the data set does not have. Pickles as its two strings.
    """

    directory: str
    split: str

    def __post_init__(self):
        splits = self._builder.info.splits
        if self.split not in splits:
            raise ValueError(f"split {self.split!r} of {self.name}: must be one of {', '.join(splits)}")

    def __getstate__(self) -> dict[str, str]:
        return {"directory": self.directory, "split": self.split}

    @functools.cached_property
    def _builder(self):
        return tfds.builder_from_directory(self.directory)

    @functools.cached_property
    def _rows(self):
        # TensorFlow Datasets would decode with OpenCV where that is installed, to other pixels for lossy formats.
        return self._builder.as_data_source(self.split, decoders={"image": tfds.decode.SkipDecoding()})

    @property
    def name(self) -> str:
        return self._builder.name

    @property
    def num_classes(self) -> int:
        return self._builder.info.features["label"].num_classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self._builder.info.features["image"].shape

    def __len__(self) -> int:
        return self._builder.info.splits[self.split].num_examples

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self._rows[i]
        return {"image": decode(row["image"]), "label": int(row["label"]), "index": int(i)}

    def fingerprint(self) -> str:
        info = self._builder.info.splits[self.split]
        identity = (self._builder.info.full_name, self.split, info.shard_lengths, info.num_bytes)
        return hashlib.sha256(repr(identity).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class InMemory:
    """A small source decoded once, on the first read, and served from memory from then on. Pickles without its rows."""

    source: Source

    def __getstate__(self) -> dict[str, Source]:
        return {"source": self.source}

    @functools.cached_property
    def _rows(self) -> list[dict[str, Any]]:
        return [self.source[i] for i in range(len(self.source))]

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.source.image_shape

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return dict(self._rows[i])

    def fingerprint(self) -> str:
        return self.source.fingerprint()


def prepare(builder: type[tfds.core.DatasetBuilder], directory: str) -> str:
    """Writes a data set below `directory` as ArrayRecord, unless it is there already, and returns its own folder.

    The folder appears whole by one rename. Of several processes that start at once, one wins and the others read what
    it wrote.
    """
    root = epath.Path(directory).expanduser()
    made = builder(data_dir=root, file_format="array_record")
    if made.data_path.exists():
        return str(made.data_path)
    try:
        # Its messages speak of a download of unknown size; there is none.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            made.download_and_prepare(download_dir=made.data_path.parent)
    except OSError:
        if not made.data_path.exists():
            raise
    return str(made.data_path)


def normalise(image: np.ndarray) -> np.ndarray:
    """uint8 in [0, 255] to float32 in [-1, 1], x / 127.5 - 1; any shape."""
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1)


def arrays(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """All rows of a source of one shape, in order: images float32 (n, h, w, c) in [-1, 1] and labels int32 (n,)."""
    rows = [source[i] for i in range(len(source))]
    images = normalise(np.stack([row["image"] for row in rows]))
    return images, np.asarray([row["label"] for row in rows], np.int32)
