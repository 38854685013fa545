"""Images that a call has drawn: a list that notebooks show as a grid."""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from tim_jax.evaluation import pictures

COLUMNS = 8  # images per row, where every condition has one image


class Images(list[Image.Image]):
    """PIL images of one size, in order, which notebooks show as a grid.

    Attributes:
        conditions: the label or prompt of each image.
        steps: of the sampler.
        each: how many images each condition has; they share a row of the grid where it is more than one.
        found: what a search says of each, its "reward" and the "candidate" that it is; [] without one.
    """

    def __init__(
        self,
        images: Iterable[Image.Image],
        conditions: Sequence[str | int],
        steps: int,
        each: int = 1,
        found: Sequence[Mapping[str, Any]] = (),
    ):
        super().__init__(images)
        self.conditions, self.steps, self.each, self.found = list(conditions), steps, each, list(found)

    def grid(self) -> Image.Image:
        """Returns all images as one, small ones enlarged, with a row for each condition that has several."""
        values = np.stack([np.asarray(image, np.float32) for image in self]) / 127.5 - 1
        if self.each == 1:
            image = pictures.grid(values, min(len(self), COLUMNS))
        else:
            labels = [str(condition) for condition in self.conditions[:: self.each]]
            image = pictures.grid(values, self.each, row_labels=labels)
        assert isinstance(image, Image.Image)
        return image

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the grid to a file, such as "samples.png"."""
        self.grid().save(path)

    def __repr__(self) -> str:
        if not self:
            return "no images"
        width, height = self[0].size
        images, steps = (
            f"{count} {what}{'s' * (count != 1)}" for count, what in ((len(self), "image"), (self.steps, "step"))
        )
        return f"{images}, {height} × {width}, in {steps}"

    def _repr_png_(self) -> bytes | None:
        if not self:
            return None
        buffer = io.BytesIO()
        self.grid().save(buffer, "PNG")
        return buffer.getvalue()


def as_array(images: np.ndarray | Image.Image | Sequence[Image.Image], channels: int) -> np.ndarray:
    """Pictures of one size as an array (n, H, W, channels) in [−1, 1]; arrays of several as they are."""
    if isinstance(images, np.ndarray):
        return images
    mode = "L" if channels == 1 else "RGB"
    given = [images] if isinstance(images, Image.Image) else images
    pixels = [np.asarray(image.convert(mode), np.float32) for image in given]
    return np.stack([one.reshape(*one.shape[:2], channels) for one in pixels]) / 127.5 - 1
