"""Distances between two sets of features: Fréchet (as in FID) and kernel (as in KID), in float64.

A Metric summarises each set once and then compares summaries, so that a reference is summarised only once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg

from tim_jax.evaluation import statistics

BLOCK = 4096  # rows of a kernel matrix held at a time


class Metric(NamedTuple):
    """summarise: features (n, d) -> summary. distance: (summary, summary) -> float, smaller is better."""

    summarise: Callable[[np.ndarray], Any]
    distance: Callable[[Any, Any], float]

    def __call__(self, a, b):
        """Distance between features a (n, d) and b (m, d)."""
        return self.distance(self.summarise(a), self.summarise(b))


def root(covariance):
    """Symmetric square root of a positive semi-definite matrix (d, d), which may be singular."""
    values, vectors = scipy.linalg.eigh(covariance)
    # Eigenvalues below the rounding error of eigh are zeros; kept, their roots would be 1e8 times that error.
    values = np.where(values > len(values) * np.finfo(np.float64).eps * np.abs(values).max(), values, 0.0)
    return (vectors * np.sqrt(values)[None, :]) @ vectors.T


def frechet_distance(a, b):
    """Squared Fréchet distance of two Gaussians with the given Statistics (Heusel et al. 2017, FID).

        |μ₁ − μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½

    The last trace is the sum of the singular values of Σ₁^½ Σ₂^½: real, and accurate for singular covariances, where
    the root of the product Σ₁Σ₂ is not. ValueError for different widths or fewer than two features.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"feature widths {len(a.mean)} and {len(b.mean)}: a distance needs equal widths")
    overlap = scipy.linalg.svdvals(root(a.covariance) @ root(b.covariance)).sum()
    squared = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap
    return max(float(squared), 0.0)


class KernelSet(NamedTuple):
    """Features (n, d) float64 and the mean of k(xᵢ, xⱼ) over all pairs i ≠ j."""

    features: np.ndarray
    within: float


def kernel_set(features):
    """KernelSet of features (n, d), n ≥ 2; time n²d. ValueError below two features or when not finite."""
    features = statistics.finite(features)
    n, d = features.shape
    if n < 2:
        raise ValueError(f"count {n}: the kernel distance needs at least 2 features")
    diagonal = ((features**2).sum(axis=1) / d + 1) ** 3
    return KernelSet(features, (_kernel_sum(features, features) - float(diagonal.sum())) / (n * (n - 1)))


def kernel_distance(a, b):
    """Unbiased squared maximum mean discrepancy of two KernelSets (Bińkowski et al. 2018, KID).

        mean_{i≠j} k(xᵢ, xⱼ) + mean_{i≠j} k(yᵢ, yⱼ) − 2 mean_{i,j} k(xᵢ, yⱼ),   k(x, y) = (x·y/d + 1)³

    Over all pairs, not over random subsets: the same expectation, less noise. Its mean is 0 for equal distributions,
    so single values may be negative. ValueError for different widths.
    """
    if a.features.shape[1] != b.features.shape[1]:
        raise ValueError(
            f"feature widths {a.features.shape[1]} and {b.features.shape[1]}: a distance needs equal widths"
        )
    between = _kernel_sum(a.features, b.features) / (len(a.features) * len(b.features))
    return a.within + b.within - 2 * between


def _kernel_sum(x, y):
    total = 0.0
    for start in range(0, len(x), BLOCK):
        k = x[start : start + BLOCK] @ y.T / x.shape[1] + 1
        total += float((k * k * k).sum())
    return total


FRECHET = Metric(statistics.of, frechet_distance)
KERNEL = Metric(kernel_set, kernel_distance)
