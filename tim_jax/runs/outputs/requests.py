"""Requests: which images are asked for, by labels or prompts, with sizes and counts; and images to start from."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from absl import logging

from tim_jax.config.network import check_tokens
from tim_jax.config.run import Run
from tim_jax.data.bad_records import BadRecord
from tim_jax.data.decode import decode, pixels
from tim_jax.runs import labels as by_name
from tim_jax.runs.conditions import class_turns
from tim_jax.runs.outputs.prompts import Record
from tim_jax.system import paths

MOST_PIXELS = 2**27  # of an image that is asked for


@dataclasses.dataclass(frozen=True)
class Request:
    """Images of one prompt or label.

    Attributes:
        condition: the prompt or the label.
        size: (h, w) of their examples.
        count: how many images.
        first: the number of the first one's noise; those of the others follow.
        name: what files of them may be called.
        record: all that the file of prompts says of this one.
    """

    condition: str | int
    size: tuple[int, int]
    count: int = 1
    first: int = 0
    name: str = ""
    record: Record = dataclasses.field(default_factory=dict)


def read_size(where: str, text: str, run: Run, factor: int = 1) -> tuple[int, int]:
    """Reads a size in pixels, such as "64x48".

    Args:
        where: what the size was given as, to begin errors with, such as "--size is".
        text: height x width of images.
        run: whose patches and devices must divide it.
        factor: pixels per position of an example.

    Returns:
        (h, w) of the examples.

    Raises:
        ValueError: if the text is no size, if the autoencoder and the patches do not divide it, or the devices that
            share tokens do not divide the patches.
    """
    patch = run.config.model.patch_size
    try:
        height, width = (int(side) for side in text.lower().split("x"))
    except (AttributeError, ValueError):
        raise ValueError(f"{where} {text!r}; it must be height x width, such as 64x48") from None
    if height * width > MOST_PIXELS:
        raise ValueError(f"{where} {text!r}; it must be of at most {MOST_PIXELS:,} pixels")
    unit = patch * factor
    if min(height, width) < 1 or height % unit or width % unit:
        whose = f"the patch size, {patch}"
        if factor > 1:
            whose = f"{unit}: {factor} pixels of {run.codecs.autoencoder} × the patch size, {patch}"
        raise ValueError(f"{where} {text!r}; height and width must be positive multiples of {whose}")
    size = height // factor, width // factor
    check_tokens(where, size, patch, run.mesh)
    return size


def label_requests(labels: Sequence[int], size: tuple[int, int]) -> list[Request]:
    """One image of each label, image i from noise i."""
    return [Request(label, size, first=i, name=f"{i:05}") for i, label in enumerate(labels)]


def read_labels(
    text: str, count: int, size: tuple[int, int], counts: np.ndarray, names: Sequence[str]
) -> list[Request]:
    """Requests of `--labels`; where the text is empty, of labels that the data has, in turn.

    Args:
        text: names and numbers with commas between, or "".
        count: how many labels where there is no text.
        size: (h, w) of the examples.
        counts: (num_classes,) how often the data has each label.
        names: of the labels, or ().

    Raises:
        ValueError: for what is no label of the run.
    """
    labels = by_name.read_labels(text, names, len(counts)) if text else class_turns(counts, count).tolist()
    if absent := [label for label in labels if not counts[label]]:
        logging.warning("--labels has %d, which the data does not have: nothing was learnt of it", min(absent))
    return label_requests(labels, size)


def prompt_requests(
    prompts: Iterable[tuple[str, Record]], size: tuple[int, int], count: int, run: Run, factor: int = 1
) -> list[Request]:
    """Images of prompts, image j of each from noise j.

    Args:
        prompts: (name, record) pairs.
        size: (h, w) of the examples of prompts whose record has no size, which would be in pixels.
        count: images of prompts whose record has no count.
        run: that samples.
        factor: pixels per position of an example.

    Raises:
        ValueError: naming the prompt's number and what is wrong with its size or count. The prompts themselves are
            checked by `TextEncoder.check`.
    """
    requests = []
    for i, (name, record) in enumerate(prompts, 1):
        own = read_size(f"prompt {i}: size is", record["size"], run, factor) if "size" in record else size
        many = record.get("count", count)
        if isinstance(many, bool) or not isinstance(many, int) or many < 1:
            raise ValueError(f"prompt {i}: count is {many!r}; it must be a whole number of at least 1")
        requests.append(Request(record["prompt"], own, many, name=name, record=record))
    return requests


def read_pixels(name: str, flag: str, channels: int) -> np.ndarray:
    """The pixels (H, W, c) of an image file, 0 … 255, in c = 1 or 3 channels. Raises ValueError, naming the flag."""
    try:
        return pixels(decode(paths.given(name, flag).read_bytes(), 1 if channels == 1 else 3))
    except (OSError, BadRecord) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{flag} has {name!r}, which cannot be read as an image: {reason}") from None


def read_images(names: Sequence[str], run: Run, factor: int | None, flag: str = "--from") -> np.ndarray:
    """Reads the image files of a flag, in the formats of data sets.

    Args:
        names: paths of the files.
        run: that samples.
        factor: pixels per position of an example; None where examples are latents that nothing decodes.
        flag: what they were given as.

    Returns:
        Images (n, H, W, C) in [−1, 1].

    Raises:
        ValueError: for what is no image, and for sizes that differ or that the autoencoder and the network's patches
            do not divide.
    """
    channels = run.image_shape[-1]
    images: list[np.ndarray] = []
    if factor is None:
        given = ",".join(names)
        raise ValueError(f"{flag} is {given}; this run's examples have {channels} channels: they are not images")
    for name in names:
        image = read_pixels(name, flag, channels)
        height, width, _ = image.shape
        read_size(f"{flag} has {name}, whose size is", f"{height}x{width}", run, factor)
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"{flag} has {name}, {height}x{width}, but the first is {'x'.join(map(str, images[0].shape[:2]))}"
            )
        images.append(image)
    return np.stack(images).astype(np.float32) / 127.5 - 1
