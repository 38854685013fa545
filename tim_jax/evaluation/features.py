"""Features: plain functions from images (n, h, w, C) in [-1, 1] to (n, d) floating-point features."""

import numpy as np


def pixels(images):
    """The pixels themselves, flattened: (n, h, w, C) -> (n, h·w·C) float64. For small images."""
    images = np.asarray(images, np.float64)
    return images.reshape(len(images), -1)
