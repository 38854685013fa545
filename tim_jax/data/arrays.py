"""Images as the arrays that networks and metrics take."""

from collections.abc import Callable

import numpy as np

from tim_jax.data.bad_records import BadRecord
from tim_jax.data.sources.base import Source


def normalise(image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Maps uint8 in [0, 255] to float32 in [-1, 1], x / 127.5 - 1.

    Args:
        image: uint8 of any shape.
        out: float32 of that shape to write to; a new array if None.
    """
    x = np.divide(image, np.float32(127.5), out=out, dtype=np.float32)
    return np.subtract(x, np.float32(1), out=x)


def load_arrays(
    source: Source, fit: Callable[[np.ndarray], np.ndarray] = lambda image: image
) -> tuple[np.ndarray, np.ndarray]:
    """Reads all examples of a small source, in order; those that cannot be used are left out.

    Args:
        source: of n examples.
        fit: brings an image (h, w, c) to the one shape that all must have.

    Returns:
        The images, float32 (n, h, w, c) in [-1, 1], and the labels, int32 (n,).
    """
    images, labels = [], []
    for i in range(len(source)):
        try:
            example = source[i]
            images.append(fit(example["image"]))
        except BadRecord:
            continue
        labels.append(example["label"])
    return normalise(np.stack(images)), np.asarray(labels, np.int32)
