"""A source: images with labels, found by number. Everything else in this room is built on it."""

import dataclasses
import functools
import hashlib
import io
import os
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from etils import epath

from tim_jax.data.decode import decode, header_size, pixels
from tim_jax.data.faults import BadRecord


class Source(Protocol):
    """A finite, ordered collection of images or latents with random access.

    name: for messages. num_classes: labels lie in [0, num_classes); 0: there are none. image_shape: (h, w, c), with
    None for h and w where they differ from row to row.
    Where rows differ in size a source also has `header` and `identity` (see Readable below); where they have captions
    its `captions` is True, where they are latents its `latents`, and where they bring their noise its `noise`. It may
    have `row`: __getitem__, but for images as Pillow's.
    """

    name: str
    num_classes: int
    image_shape: tuple[int | None, int | None, int]

    def __len__(self) -> int:
        """The number of rows."""

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Row i, 0 <= i < len: {"image": uint8 (h, w, c), "label": int, "index": i}.

        Latents are float32, and come with "flipped", the latent of the mirrored image; where these are means, to be
        sampled around, also with "deviations" (2, h, w, c), of both. A model's samples, of images as well, are float32
        and come with "noise" (h, w, c), what they were made from. A row may also hold "captions", a tuple of texts,
        "texts", features (L, T) for each of them, and "features" (2, rows, columns, Z), of the image and its mirror
        image. Raises BadRecord for a row that cannot be used.
        """

    def fingerprint(self) -> str:
        """A short digest that changes when the rows do."""


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a source's rows are.

    directory: where embedded data sets, indices and tables of sizes are written. path: of the data, or the name of a
    data set; embedded sources have none. split: which part of the data, where the source has parts. channels: of the
    images to make, 1 or 3, or of the latents that are there. num_classes: labels lie below it, where the data does not
    say so itself; 0: labels are not read.
    """

    directory: str
    split: str = "train"
    path: str = ""
    channels: int = 3
    num_classes: int = 0

    @property
    def root(self) -> epath.Path:
        """The path. Raises ValueError if it is not there."""
        if not self.path:
            raise ValueError("data.path is empty; it must name the data of this source")
        root = epath.Path(self.path).expanduser()
        if not root.exists():
            raise ValueError(f"data.path is {self.path!r}; there is no such file or folder")
        return root


def digest(*parts: Any) -> str:
    """A short digest of what is given, by its representation."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def stamp(path: epath.Path) -> tuple[int, float]:
    """(bytes, time of the last change) of a file or folder, as exactly as its storage knows."""
    if os.path.exists(path):
        stat = os.stat(path)
        return stat.st_size, stat.st_mtime_ns
    stat = path.stat()
    return stat.length, stat.mtime


class Fields:
    """Pickles a frozen dataclass as its fields alone, without what it has read or opened."""

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


class Raw(NamedTuple):
    """A row as it is stored. encoded: bytes of an image file; label, captions: whatever is found, None for nothing."""

    encoded: bytes
    label: Any = None
    captions: Any = None


def checked_label(label: Any, num_classes: int) -> int:
    """The label as a whole number in [0, num_classes), 0 where there are no classes. Raises BadRecord."""
    if not num_classes:
        return 0
    if isinstance(label, bool) or not isinstance(label, int | np.integer) or not 0 <= label < num_classes:
        raise BadRecord("label", f"{label!r}, must be a whole number from 0 to {num_classes - 1}")
    return int(label)


def checked_captions(captions: Any) -> tuple[str, ...]:
    """One or more texts as a tuple. Raises BadRecord."""
    found = (captions,) if isinstance(captions, str) else captions
    if not isinstance(found, list | tuple) or not found:
        raise BadRecord("caption", f"{captions!r:.60}, must be a text or a list of texts")
    for text in found:
        if not isinstance(text, str) or not text.strip():
            raise BadRecord("caption", f"{text!r:.60}, must be a text that is not empty")
        if any("\ud800" <= letter <= "\udfff" for letter in text):  # halves of a letter, which no tokenizer reads
            raise BadRecord("caption", f"{text!r:.60}, must be valid Unicode")
    return tuple(found)


class Readable(Fields):
    """What sources of encoded images share. They give `raw`, `identity`, `num_classes`, `captions` and `image_shape`.

    raw(i, most): the stored row, of the image's bytes at least the first `most`; identity(i): what to call the row.
    """

    HEADER_BYTES = 2**16
    captions = False

    def checked(self, raw: Raw) -> dict[str, Any]:
        """Label and captions of a stored row. Raises BadRecord."""
        row = {"label": checked_label(raw.label, self.num_classes)}
        return row | {"captions": checked_captions(raw.captions)} if self.captions else row

    def row(self, i: int) -> dict[str, Any]:
        """Row i with the image as Pillow's, which is resized without being copied."""
        raw = self.raw(i)
        row = self.checked(raw)
        return row | {"image": decode(raw.encoded, self.image_shape[-1]), "index": int(i)}

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self.row(i)
        return row | {"image": pixels(row["image"])}

    def header(self, i: int) -> tuple[int, int]:
        """(height, width) of row i without decoding its pixels. Raises BadRecord for what can be seen to be wrong."""
        raw = self.raw(i, self.HEADER_BYTES)
        self.checked(raw)
        if not raw.encoded:
            raise BadRecord("empty")
        if len(raw.encoded) >= self.HEADER_BYTES:
            try:
                return header_size(io.BytesIO(raw.encoded[: self.HEADER_BYTES]))
            except BadRecord:  # a header may be longer, as when it holds a colour profile
                raw = self.raw(i)
        return header_size(io.BytesIO(raw.encoded))


def read_file(path: epath.Path, most: int = -1) -> bytes:
    """The bytes of a file, or its first `most`. Raises BadRecord if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(most)
    except FileNotFoundError:
        raise BadRecord("missing", str(path)) from None
    except OSError as error:
        raise BadRecord("unreadable", str(error)) from None


@dataclasses.dataclass(frozen=True)
class InMemory(Fields):
    """A small source, each row decoded when it is first read and served from memory from then on. Pickles without."""

    source: Source

    @functools.cached_property
    def _rows(self) -> dict[int, dict[str, Any]]:
        return {}

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.source.image_shape

    @property
    def captions(self) -> bool:
        return getattr(self.source, "captions", False)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> dict[str, Any]:
        if i not in self._rows:
            self._rows[i] = self.source[i]
        return dict(self._rows[i])

    def header(self, i: int) -> tuple[int, int]:
        return self.source.header(i)

    def identity(self, i: int) -> str:
        return self.source.identity(i)

    def fingerprint(self) -> str:
        return self.source.fingerprint()


def normalise(image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """uint8 in [0, 255] to float32 in [-1, 1], x / 127.5 - 1; any shape. out: float32 of that shape to write to."""
    x = np.divide(image, np.float32(127.5), out=out, dtype=np.float32)
    return np.subtract(x, np.float32(1), out=x)


def arrays(
    source: Source, fit: Callable[[np.ndarray], np.ndarray] = lambda image: image
) -> tuple[np.ndarray, np.ndarray]:
    """All rows of a source, in order: images float32 (n, h, w, c) in [-1, 1] and labels int32 (n,).

    fit: brings an image (h, w, c) to the one shape that all must have. Rows that cannot be used are left out.
    """
    images, labels = [], []
    for i in range(len(source)):
        try:
            row = source[i]
            images.append(fit(row["image"]))
        except BadRecord:
            continue
        labels.append(row["label"])
    return normalise(np.stack(images)), np.asarray(labels, np.int32)
