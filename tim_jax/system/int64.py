"""Whole numbers of 64 bits on devices that count in 32: as two int32, the upper and the lower 31 bits."""

import numpy as np


def to_halves(numbers: np.ndarray) -> np.ndarray:
    """Returns int32 (…, 2) for int64 (…), 0 ≤ number < 2⁶²."""
    return np.stack([numbers >> 31, numbers & 0x7FFFFFFF], axis=-1).astype(np.int32)


def from_halves(halves: np.ndarray) -> np.ndarray:
    """Returns int64 (…) for whole numbers (…, 2)."""
    high, low = np.moveaxis(np.asarray(halves).astype(np.int64), -1, 0)
    return (high << 31) + low
