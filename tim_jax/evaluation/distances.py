"""Distances between two sets of features: Fréchet (as in FID) and kernel (as in KID), in float64."""

from typing import NamedTuple

import numpy as np

from tim_jax.evaluation import statistics
from tim_jax.evaluation.statistics import Statistics
from tim_jax.evaluation.summaries import RawFeatures

BLOCK = 4096  # rows of a kernel matrix that are in memory at a time


class Gaussian(NamedTuple):
    """A Gaussian over features of width d.

    Attributes:
        mean: (d,).
        trace: of the covariance Σ.
        factor: L (d, rank) with Σ = L Lᵀ.
    """

    mean: np.ndarray
    trace: float
    factor: np.ndarray


def factor(covariance: np.ndarray) -> np.ndarray:
    """Factorises a covariance that may be singular, by Cholesky's method with pivots.

    Args:
        covariance: (d, d), positive semidefinite.

    Returns:
        L (d, rank) with L Lᵀ = covariance up to rounding.
    """
    import scipy.linalg  # slow to import

    lower, pivots, rank, _ = scipy.linalg.lapack.dpstrf(covariance, lower=1)
    found = np.empty((len(covariance), rank))
    found[pivots - 1] = np.tril(lower)[:, :rank]
    return found


def gaussian(moments: Statistics) -> Gaussian:
    """Returns the Gaussian with the given moments, in time d³. Raises ValueError for fewer than two features."""
    covariance = moments.covariance
    return Gaussian(moments.mean, float(np.trace(covariance)), factor(covariance))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Returns the squared Fréchet distance of two Gaussians (Heusel et al. 2017, FID).

        |μ₁ − μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½

    With Σ = L Lᵀ the last trace is the sum of the singular values of L₁ᵀL₂: real, and accurate for singular
    covariances, where the root of the product Σ₁Σ₂ is not. Raises ValueError for different widths.
    """
    import scipy.linalg  # slow to import

    if a.mean.shape != b.mean.shape:
        raise ValueError(f"feature widths {len(a.mean)} and {len(b.mean)}: a distance needs equal widths")
    product = a.factor.T @ b.factor
    overlap = scipy.linalg.svdvals(product).sum() if product.size else 0.0
    return max(float(((a.mean - b.mean) ** 2).sum() + a.trace + b.trace - 2 * overlap), 0.0)


class KernelSet(NamedTuple):
    """Features with the part of the kernel distance that depends on them alone.

    Attributes:
        features: (n, d) float64.
        within: the mean of k(xᵢ, xⱼ) over all pairs i ≠ j.
    """

    features: np.ndarray
    within: float


def kernel_set(raw: RawFeatures) -> KernelSet:
    """Returns the KernelSet of features (n, d), n ≥ 2, in time n²d. Raises ValueError below two features."""
    features = statistics.finite(raw.values)
    n, d = features.shape
    if n < 2:
        raise ValueError(f"count {n}: the kernel distance needs at least 2 features")
    diagonal = ((features**2).sum(axis=1) / d + 1) ** 3
    return KernelSet(features, (_kernel_sum(features, features) - float(diagonal.sum())) / (n * (n - 1)))


def kernel_distance(a: KernelSet, b: KernelSet) -> float:
    """Returns the unbiased squared maximum mean discrepancy of two sets (Bińkowski et al. 2018, KID).

        mean_{i≠j} k(xᵢ, xⱼ) + mean_{i≠j} k(yᵢ, yⱼ) − 2 mean_{i,j} k(xᵢ, yⱼ),   k(x, y) = (x·y/d + 1)³

    All pairs are taken, not random subsets: the expectation is the same, with less noise. The mean is 0 for equal
    distributions, so that single values may be negative. Raises ValueError for different widths.
    """
    if a.features.shape[1] != b.features.shape[1]:
        raise ValueError(
            f"feature widths {a.features.shape[1]} and {b.features.shape[1]}: a distance needs equal widths"
        )
    between = _kernel_sum(a.features, b.features) / (len(a.features) * len(b.features))
    return a.within + b.within - 2 * between


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    total = 0.0
    for start in range(0, len(x), BLOCK):
        k = x[start : start + BLOCK] @ y.T / x.shape[1] + 1
        total += float((k * k * k).sum())
    return total
