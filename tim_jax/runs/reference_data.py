"""Real images that samples are compared with: a split of a run's data, or a published reference batch."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from tim_jax import data
from tim_jax.config.run import Run
from tim_jax.data.settings import open_split
from tim_jax.evaluation import published, summaries
from tim_jax.evaluation.features import Features
from tim_jax.evaluation.settings import AUTO
from tim_jax.runs.input_pipeline import one_shape, open_held_out


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Real images to compare samples with.

    Attributes:
        fingerprint: what tells them from others.
        count: how many there are.
        read: numbers (n,) below count → (images (n, h, w, C) in [−1, 1], which of them could be read (n,) bool).
        given: what is known of them without reading any.
    """

    fingerprint: dict[str, Any]
    count: int
    read: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    given: summaries.Summary = dataclasses.field(default_factory=dict)


def picture_shape(run: Run) -> tuple[int, int, int]:
    """(H, W, c) of the images of a run's samples: its examples, or what its autoencoder decodes them to."""
    if not run.codecs.autoencoder:
        return run.image_shape
    factor = run.codecs.describe().factor
    return *(factor * side for side in run.image_shape[:2]), 3


def _fingerprint(run: Run, features: Features, **source: Any) -> dict[str, Any]:
    size = "x".join(str(side) for side in picture_shape(run))
    fitted = "" if run.inputs.bucketing is None else "covered and cropped; "
    return source | {
        "size": size,
        "preprocessing": fitted + (features.preprocessing if run.shows_images else "none"),
        "features": features.identity,
        "rows": run.evaluation.max_images,
    }


def training_images(run: Run, features: Features) -> ImageSet:
    """The images that a run is trained on, brought to the shape of its samples.

    Raises ValueError if they are not there, or are latents.
    """
    source, fit = one_shape(run, run.data.split)
    if run.codecs.autoencoder and source.latents:
        raise ValueError(
            f"evaluation.reference is {run.evaluation.reference!r}; it must be a reference batch of images, as samples "
            f"are images and the examples of {source.name} latents"
        )
    return _images_of(run, features, run.data.split, source, fit)


def trained_images(run: Run, features: Features) -> ImageSet | None:
    """The images that a run is trained on, where `evaluation.source` names others to compare with; otherwise None.

    None as well where they are no images, but latents or pairs, or are not there any more, which is warned of.
    """
    if not run.evaluation.source:
        return None
    own = dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, source="", path=""))
    try:
        source = open_split(run.inputs, run.data.split)
        if source.latents or source.paired_noise:
            return None
        return _images_of(run, features, run.data.split, *one_shape(own, run.data.split))
    except ValueError as error:
        logging.warning("held-out images are not looked for among those that are trained on: %s", error)
        return None


def held_out_images(run: Run, features: Features) -> ImageSet | None:
    """The images that are held out, brought to the shape of the run's samples; None if there are none.

    Raises ValueError if `evaluation.held_out` names a part that is trained on, is not there, or is of latents.
    """
    named = run.evaluation.held_out
    if named == run.data.split:
        raise ValueError(f"evaluation.held_out is {named!r}; it must be another part than data.split, or ''")
    found = open_held_out(run)
    if found is None:
        logging.warning("evaluation.held_out is %r: samples are compared with what is trained on alone", named)
        return None
    split, source, fit = found
    if not run.codecs.autoencoder or not source.latents:
        return _images_of(run, features, split, source, fit)
    if named == AUTO:
        return None
    raise ValueError(
        f"evaluation.held_out is {named!r}; it must be '', as samples are images and the examples of {source.name} "
        "latents"
    )


def _images_of(
    run: Run, features: Features, split: str, source: data.Source, fit: Callable[[np.ndarray], np.ndarray]
) -> ImageSet:
    """The images of a split, which `one_shape` opened."""
    shape = picture_shape(run)

    def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, found = np.zeros((len(indices), *shape), np.float32), np.ones(len(indices), bool)
        for row, i in enumerate(indices):
            try:
                images[row] = data.normalise(fit(source[int(i)]["image"]))
            except data.BadRecord:
                found[row] = False
        return images, found

    about = {"data": f"{source.name} {source.fingerprint()}", "split": split, "images": len(source)}
    return ImageSet(_fingerprint(run, features, **about), len(source), read)


def reference_batch(run: Run, features: Features, path: str) -> ImageSet:
    """The images of a published reference batch. Raises ValueError if it does not suit the run."""
    given = published.read_moments(path) if features.name == "inception" else {}
    for output, width in (("features", 2048), ("spatial", 2023)):
        if (output, "moments") in given and len(given[output, "moments"].mean) != width:
            found = len(given[output, "moments"].mean)
            raise ValueError(f"evaluation.reference is {path!r}; it must have {output} {width} wide, and has {found}")
    shape = published.image_shape(path)
    if shape is None and not given:
        raise ValueError(
            f"evaluation.reference is {path!r}; it must hold images (arr_0) or, for 'inception', mu and sigma"
        )
    count, size = (shape[0], shape[1:]) if shape else (0, None)
    height, width, channels = picture_shape(run)
    if size and size[:2] != (height, width):
        raise ValueError(
            f"evaluation.reference is {path!r}; it must have images of the size of this run's samples, "
            f"{height}x{width}, and "
            f"has {size[0]}x{size[1]}"
        )
    images = _InOrder(path)

    def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = data.normalise(images[indices])[..., :channels]
        return found, np.ones(len(indices), bool)

    about = {"data": f"{epath.Path(path).name} {published.digest(path)}", "split": "all", "images": count}
    return ImageSet(_fingerprint(run, features, **about), count, read, given)


def labelled_reader(
    run: Run, source: data.Source, fit: Callable[[np.ndarray], np.ndarray]
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Reads images with their labels from a split that `one_shape` opened.

    Returns:
        numbers (n,) → images (n, h, w, C) in [−1, 1], labels (n,), the null label where there is none, and which of
        them could be read (n,) bool.
    """
    classes = run.config.model.num_classes

    def read(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        images, labels = (
            np.zeros((len(numbers), *run.image_shape), np.float32),
            np.full(len(numbers), classes, np.int32),
        )
        found = np.ones(len(numbers), bool)
        for row, i in enumerate(numbers):
            try:
                record = source[int(i)]
                images[row], labels[row] = data.normalise(fit(record["image"])), record.get("label", classes)
            except data.BadRecord:
                found[row] = False
        return images, labels, found

    return read


class _InOrder:
    """Reads the images of a file by number, in ascending order, with no more than needed in memory."""

    def __init__(self, path: str):
        self._path = path
        self._batches: Iterator[np.ndarray] | None = None
        self._held: np.ndarray | None = None
        self._first = 0  # the number of the first image that is held

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        if self._batches is None or indices.min() < self._first:
            self._batches, self._first, self._held = published.read_images(self._path), 0, None
        while self._held is None or self._first + len(self._held) <= indices.max():
            more = next(self._batches)
            if self._held is not None:
                drop = min(max(int(indices.min()) - self._first, 0), len(self._held))
                self._first += drop
                more = np.concatenate([self._held[drop:], more])
            self._held = more
        return self._held[indices - self._first]
