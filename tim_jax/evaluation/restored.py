"""How near restored images come to the true ones."""

import numpy as np

NAME, TITLE = "psnr", "PSNR"
LEAST = 1e-10  # mean square error that counts as none: 106 dB


def psnr(images: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Returns the peak signal-to-noise ratio (n,) in dB of each of n images (n, h, w, C) with values in [−1, 1]."""
    difference = np.asarray(images, np.float64) - truths
    error = np.square(difference).reshape(len(images), -1).mean(axis=1)
    return 10 * np.log10(4 / np.maximum(error, LEAST))
