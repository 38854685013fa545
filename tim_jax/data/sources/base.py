"""What a source of images is. A new source is one file beside this one and one line in `sources/__init__.py`.

Most sources hold encoded image files: they extend `EncodedImages` and say how many examples there are, what is stored
of each of them, and what changes when they do. All others extend `Source`. See parquet.py for an example of the first
and latents.py for one of the second.
"""

import abc
import contextlib
import dataclasses
import functools
import hashlib
import io
import os
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from tim_jax.data.bad_records import BadRecord
from tim_jax.data.decode import decode, header_size, pixels
from tim_jax.system import files, paths

Example = dict[str, Any]


class PickledByFields:
    """Pickles a frozen dataclass as its fields alone, without what it has cached, read or opened."""

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]


class Source(PickledByFields, abc.ABC):
    """A finite, ordered collection of images or latents with random access, read by many threads and processes.

    A source is a frozen dataclass, which travels to worker processes as its fields. It must define `name`,
    `image_shape`, `__len__`, `read` and `fingerprint`; everything else has a default, which is overridden by a field,
    a class attribute or a property of the same name.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The name that messages give the source."""

    @property
    @abc.abstractmethod
    def image_shape(self) -> tuple[int | None, int | None, int]:
        """The shape (h, w, c) of every image or latent; h and w are None where examples differ in size."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of examples."""

    @abc.abstractmethod
    def read(self, i: int) -> Example:
        """Example i, the image in the form that is cheapest to resize.

        Args:
            i: which example, 0 <= i < len.

        Returns:
            {"image", "label": int, "index": i}, and with them what else the source has:

            - "image" is a Pillow image in mode L or RGB, a uint8 array (h, w, c), or a float32 latent (h, w, c).
            - "flipped" (h, w, c): the latent of the mirrored image, where examples are latents without their own noise.
            - "deviations" (2, h, w, c): standard deviations around both latents, where these are means to sample from.
            - "noise" (h, w, c), where `paired_noise`: what a model's sample "image" (float32) was made from.
            - "captions", where `captions`: a tuple of texts.
            - "texts": for each caption the features (L, T) of its tokens.
            - "features" (2, rows, columns, Z): features of the image and of its mirror image on a grid.
            - "original": the image that a latent was made of, a Pillow image in mode RGB.
            - "loser", like "image", and perhaps "reward", a float, where `preference` has them.

        Raises:
            BadRecord: the example cannot be used.
        """

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """A short digest that changes when the examples do."""

    def former_fingerprint(self) -> str:
        """The fingerprint that version 0.1 gave, so that what it began can be finished."""
        return self.fingerprint()

    @property
    def num_classes(self) -> int:
        """Labels lie in [0, num_classes); 0 says that there are no labels."""
        return 0

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the labels 0, 1, ... are called; () where the data does not say."""
        return ()

    @property
    def left_out(self) -> dict[str, int]:
        """What lies beside the examples and is none: what it is, in words -> how many of it."""
        return {}

    @property
    def captions(self) -> bool:
        """Whether examples have captions."""
        return False

    @property
    def latents(self) -> bool:
        """Whether examples are latents, which can be cropped but not resized."""
        return False

    @property
    def paired_noise(self) -> bool:
        """Whether examples are a model's samples that bring the noise they were made from."""
        return False

    @property
    def preference(self) -> tuple[str, ...]:
        """Of pairs whose image was preferred: "loser", the other image, and "reward" if there are any; () of others."""
        return ()

    @property
    def null_text(self) -> dict[str, np.ndarray]:
        """The features of the empty prompt, {"text" (M, T), "mask" (M,)}; {} where examples have no text features."""
        return {}

    @property
    def parts(self) -> tuple[tuple[int, Fraction], ...]:
        """(examples, passes per epoch) of each part: one part that is passed once, unless this is a mixture."""
        return ((len(self), Fraction(1)),)

    def identity(self, i: int) -> str:
        """What reports of bad records call example i; no two have the same."""
        return f"{self.name}[{i}]"

    def stable_names(self, start: int, stop: int) -> list[str]:
        """For each example from start to stop - 1 a name that stays the same whatever is added to the data.

        It decides whether the example is held out, see `splits.Part`; several may have the same one.
        """
        return [self.identity(i) for i in range(start, stop)]

    def header(self, i: int) -> tuple[int, int]:
        """(height, width) of example i, read without its pixels where the format allows. Raises BadRecord."""
        height, width = self[i]["image"].shape[:2]
        return height, width

    def headers(self, start: int, stop: int) -> list[tuple[int, int] | BadRecord]:
        """For each example from start to stop - 1, its (height, width) or what is wrong with it."""
        found: list[tuple[int, int] | BadRecord] = []
        for i in range(start, stop):
            try:
                found.append(self.header(i))
            except BadRecord as error:
                found.append(error)
        return found

    def annotations(self, i: int) -> Example:
        """The "label" and, where there are any, the "captions" of example i, without its image. Raises BadRecord."""
        return {name: value for name, value in self.read(i).items() if name in ("label", "captions")}

    @property
    def labels_at_hand(self) -> bool:
        """Whether `labels` reads no example, so that it takes no time to ask for all of them."""
        return False

    def labels(self, examples: np.ndarray) -> np.ndarray:
        """The labels of examples (n,), int64; -1 for those that cannot be used."""
        found = np.full(len(examples), -1)
        for row, i in enumerate(examples.tolist()):
            with contextlib.suppress(BadRecord):
                found[row] = self.annotations(i)["label"]
        return found

    def __getitem__(self, i: int) -> Example:
        """Example i as `read` gives it, but its image always an array."""
        example = self.read(i)
        image = example["image"]
        return example if isinstance(image, np.ndarray) else example | {"image": pixels(image)}


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a source finds its examples.

    Attributes:
        directory: the folder that embedded data sets, indices and tables of sizes are written to.
        split: the part of the data, see `splits.own_split`.
        held_out_share: the share of "train" that is the part "held_out" instead; 0 for none.
        path: the data itself, or the name of a data set; embedded sources need none.
        channels: channels of the images to make, 1 or 3, or of the latents that are there.
        size: pixels of the sides of images, for a source that draws them.
        num_classes: labels lie below it, where the data does not say so itself; 0 says that labels are not read.
        images: the images that latents were made of, where they are to be read beside them.
        captions: whether captions are read, where the data has them.
        key, split_key: the configuration's keys of `path` and `split`, for messages.
    """

    directory: str
    split: str = "train"
    held_out_share: float = 0.0
    path: str = ""
    channels: int = 3
    size: int = 32
    num_classes: int = 0
    images: str = ""
    captions: bool = True
    key: str = "data.path"
    split_key: str = "data.split"

    @property
    def root(self) -> epath.Path:
        """The path, from the root of the disk. Raises ValueError if it is not there."""
        if not self.path:
            raise ValueError(
                f"{self.key} is {self.path!r}; it must name the data of this source: --config.{self.key}=PATH"
            )
        root = paths.given(self.path, self.key)
        if not root.exists():
            raise ValueError(f"{self.key} is {self.path!r}; it must be a file or folder that exists")
        return epath.Path(os.path.abspath(root)) if files.is_local(root) else root

    @property
    def folder(self) -> epath.Path:
        """`root`, where it must be a folder. Raises ValueError if it is not there, or is a file."""
        root = self.root
        if not root.is_dir():
            raise ValueError(f"{self.key} is {self.path!r}; it must be a folder, and is a file")
        return root


def digest(*parts: Any) -> str:
    """A short digest of the arguments, made of their representations."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


class Raw(NamedTuple):
    """An example as it is stored.

    Attributes:
        encoded: the bytes of an image file.
        label: the label as it was found, None where there is none.
        captions: one text or several as they were found, None where there are none.
    """

    encoded: bytes
    label: Any = None
    captions: Any = None


def checked_label(label: Any, num_classes: int) -> int:
    """The label as an integer in [0, num_classes), 0 where there are no classes.

    Args:
        label: a whole number of any type of numbers: tables and tensors often hold labels as floats.
        num_classes: 0 says that labels are not read.

    Raises:
        BadRecord: it is no number, not whole or out of range.
    """
    if not num_classes:
        return 0
    number = isinstance(label, int | float | np.integer | np.floating) and not isinstance(label, bool)
    if not number or not 0 <= label < num_classes or label != int(label):
        raise BadRecord("label", f"{label!r}, must be a whole number from 0 to {num_classes - 1}")
    return int(label)


def checked_captions(captions: Any) -> tuple[str, ...]:
    """One text or several as a tuple. Raises BadRecord."""
    found = (captions,) if isinstance(captions, str) else captions
    if not isinstance(found, list | tuple) or not found:
        raise BadRecord("caption", f"{captions!r:.60}, must be a text or a list of texts")
    for text in found:
        if not isinstance(text, str) or not text.strip():
            raise BadRecord("caption", f"{text!r:.60}, must be a text that is not empty")
        if any("\ud800" <= letter <= "\udfff" for letter in text):  # halves of a letter, which no tokenizer reads
            raise BadRecord("caption", f"{text!r:.60}, must be valid Unicode")
    return tuple(found)


class EncodedImages(Source):
    """A source of encoded image files: besides `name`, `image_shape`, `__len__` and `fingerprint` it defines `raw`."""

    HEADER_BYTES = 2**16

    @abc.abstractmethod
    def raw(self, i: int, max_bytes: int = -1) -> Raw:
        """Example i as it is stored.

        Args:
            i: which example.
            max_bytes: how many bytes of the image file are needed; more may be given. -1 asks for all.

        Raises:
            BadRecord: the example cannot be read.
        """

    def read(self, i: int) -> Example:
        raw = self.raw(i)
        example = self.checked(raw)
        return example | {"image": decode(raw.encoded, self.image_shape[-1]), "index": int(i)}

    def annotations(self, i: int) -> Example:
        return self.checked(self.raw(i, max_bytes=1))

    def header(self, i: int) -> tuple[int, int]:
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

    def checked(self, raw: Raw) -> Example:
        """Label and captions of a stored example. Raises BadRecord."""
        example: Example = {"label": checked_label(raw.label, self.num_classes)}
        return example | {"captions": checked_captions(raw.captions)} if self.captions else example


def read_file(path: epath.Path, max_bytes: int = -1) -> bytes:
    """The bytes of a file, or its first `max_bytes`. Raises BadRecord if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(max_bytes)
    except FileNotFoundError:
        raise BadRecord("missing", str(path)) from None
    except OSError as error:
        raise BadRecord("unreadable", str(error)) from None


@dataclasses.dataclass(frozen=True)
class View(Source):
    """A source that shows examples of another one, and is like it in all that it does not define itself."""

    source: Source

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        return self.source.image_shape

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    def left_out(self) -> dict[str, int]:
        return self.source.left_out

    @property
    def captions(self) -> bool:
        return self.source.captions

    @property
    def latents(self) -> bool:
        return self.source.latents

    @property
    def paired_noise(self) -> bool:
        return self.source.paired_noise

    @property
    def preference(self) -> tuple[str, ...]:
        return self.source.preference

    @property
    def null_text(self) -> dict[str, np.ndarray]:
        return self.source.null_text

    def __len__(self) -> int:
        return len(self.source)

    def read(self, i: int) -> Example:
        return self.source.read(i)

    def annotations(self, i: int) -> Example:
        return self.source.annotations(i)

    @property
    def labels_at_hand(self) -> bool:
        return self.source.labels_at_hand

    def labels(self, examples: np.ndarray) -> np.ndarray:
        return self.source.labels(examples)

    def header(self, i: int) -> tuple[int, int]:
        return self.source.header(i)

    def identity(self, i: int) -> str:
        return self.source.identity(i)

    def stable_names(self, start: int, stop: int) -> list[str]:
        return self.source.stable_names(start, stop)

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def former_fingerprint(self) -> str:
        return self.source.former_fingerprint()


@dataclasses.dataclass(frozen=True)
class InMemory(View):
    """A small source whose examples are decoded when they are first read, and from then on served from memory."""

    @functools.cached_property
    def _examples(self) -> dict[int, Example]:
        return {}

    def read(self, i: int) -> Example:
        if i not in self._examples:
            self._examples[i] = self.source[i]
        return dict(self._examples[i])
