"""Mean and covariance of features, gathered batch by batch in float64.

    n = n₁ + n₂,   δ = μ₂ − μ₁,   μ = μ₁ + δ n₂/n,   S = S₁ + S₂ + δδᵀ n₁n₂/n

(Chan, Golub & LeVeque 1979), with S = Σᵢ (xᵢ − μ)(xᵢ − μ)ᵀ. The merge is an identity, whatever the split, and loses
no digits when the mean is large beside the spread, as the plain sum of products would.
"""

from typing import NamedTuple

import numpy as np


class Statistics(NamedTuple):
    """Of `count` features of width d: mean (d,), scatter (d, d) around that mean; all float64."""

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def covariance(self):
        """Unbiased covariance S / (n − 1), (d, d). ValueError below two features."""
        if self.count < 2:
            raise ValueError(f"count {self.count}: a covariance needs at least 2 features")
        return self.scatter / (self.count - 1)


def empty(width):
    """Statistics of no features; merging with it changes nothing."""
    return Statistics(0, np.zeros(width), np.zeros((width, width)))


def of(features):
    """Statistics of features (n, d), n ≥ 1. ValueError for another shape or values that are not finite."""
    features = finite(features)
    mean = features.mean(axis=0)
    centred = features - mean[None, :]
    return Statistics(len(features), mean, centred.T @ centred)


def merge(a, b):
    """Statistics of the union of two disjoint sets."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"feature widths {len(a.mean)} and {len(b.mean)}: only equal widths can be merged")
    count = a.count + b.count
    if count == 0:
        return a
    delta = b.mean - a.mean
    mean = a.mean + delta * (b.count / count)
    return Statistics(count, mean, a.scatter + b.scatter + np.outer(delta, delta) * (a.count * b.count / count))


def finite(features):
    """Features as (n, d) float64. ValueError for another shape, for none, and for values that are not finite."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) == 0:
        raise ValueError(f"features of shape {features.shape}: expected (n, d) with n at least 1")
    broken = int((~np.isfinite(features)).any(axis=1).sum())
    if broken:
        raise ValueError(f"features: {broken} of {len(features)} rows are not finite; expected finite numbers")
    return features
