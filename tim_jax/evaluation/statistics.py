"""Mean and covariance of features, gathered batch by batch in float64.

    n = n₁ + n₂,   δ = μ₂ − μ₁,   μ = μ₁ + δ n₂/n,   S = S₁ + S₂ + δδᵀ n₁n₂/n

(Chan, Golub & LeVeque 1979), with S = Σᵢ (xᵢ − μ)(xᵢ − μ)ᵀ. The merge is an identity for any split of the data, and it
loses no digits when the mean is large beside the spread, as the plain sum of products would.
"""

from typing import NamedTuple

import numpy as np


class Statistics(NamedTuple):
    """First and second moments of features of width d, in float64.

    Attributes:
        count: number of features.
        mean: (d,).
        scatter: (d, d), the sum of products around the mean.
    """

    count: int  # type: ignore[assignment]  # the name that stored references have; it hides tuple.count
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance S / (n − 1), (d, d). Raises ValueError below two features."""
        if self.count < 2:
            raise ValueError(f"count {self.count}: a covariance needs at least 2 features")
        return self.scatter / (self.count - 1)


def empty(width: int) -> Statistics:
    """Returns the statistics of no features; merging with them changes nothing."""
    return Statistics(0, np.zeros(width), np.zeros((width, width)))


def of(features: np.ndarray) -> Statistics:
    """Returns the statistics of features (n, d), n ≥ 1. Raises ValueError as `finite` does."""
    features = finite(features)
    mean = features.mean(axis=0)
    centred = features - mean[None, :]
    return Statistics(len(features), mean, centred.T @ centred)


def merge(a: Statistics, b: Statistics) -> Statistics:
    """Returns the statistics of the union of two disjoint sets. Raises ValueError if their widths differ."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"feature widths {len(a.mean)} and {len(b.mean)}: only equal widths can be merged")
    count = a.count + b.count
    if count == 0:
        return a
    delta = b.mean - a.mean
    mean = a.mean + delta * (b.count / count)
    return Statistics(count, mean, a.scatter + b.scatter + np.outer(delta, delta) * (a.count * b.count / count))


def finite(features: np.ndarray) -> np.ndarray:
    """Checks features and converts them to float64.

    Args:
        features: (n, d), n ≥ 1.

    Returns:
        The same in float64.

    Raises:
        ValueError: if the shape is another one, or some values are not finite.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) == 0:
        raise ValueError(f"features of shape {features.shape}: expected (n, d) with n at least 1")
    broken = int((~np.isfinite(features)).any(axis=1).sum())
    if broken:
        raise ValueError(f"features: {broken} of {len(features)} vectors are not finite; expected finite numbers")
    return features
