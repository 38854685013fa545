"""Distances between two sets of features: Fréchet (as in FID) and kernel (as in KID and CMMD), in float64."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from tim_jax.evaluation import statistics
from tim_jax.evaluation.statistics import Statistics
from tim_jax.evaluation.summaries import RawFeatures

BLOCK = 2048  # rows and columns of a kernel matrix that are in memory at a time
MMD_SIGMA, MMD_SCALE = 10.0, 1000.0  # of the Gaussian kernel, and of the figure, as published


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
        within: the mean of k(xᵢ, xⱼ) over all pairs i ≠ j, of the Gaussian kernel over all pairs.
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
    return KernelSet(features, (_kernel_sum(_cubic, features, features) - float(diagonal.sum())) / (n * (n - 1)))


def kernel_distance(a: KernelSet, b: KernelSet) -> float:
    """Returns the unbiased squared maximum mean discrepancy of two sets (Bińkowski et al. 2018, KID).

        mean_{i≠j} k(xᵢ, xⱼ) + mean_{i≠j} k(yᵢ, yⱼ) − 2 mean_{i,j} k(xᵢ, yⱼ),   k(x, y) = (x·y/d + 1)³

    All pairs are taken, not random subsets: the expectation is the same, with less noise. The mean is 0 for equal
    distributions, so that single values may be negative. Raises ValueError for different widths.
    """
    _check_widths(a, b)
    between = _kernel_sum(_cubic, a.features, b.features) / (len(a.features) * len(b.features))
    return a.within + b.within - 2 * between


def mmd_set(raw: RawFeatures) -> KernelSet:
    """Returns the KernelSet of the Gaussian kernel, with pairs i = j, in time n²d. Raises ValueError below two."""
    features = statistics.finite(raw.values)
    if len(features) < 2:
        raise ValueError(f"count {len(features)}: the maximum mean discrepancy needs at least 2 features")
    return KernelSet(features, _kernel_sum(_gaussian, features, features) / len(features) ** 2)


def mmd(a: KernelSet, b: KernelSet) -> float:
    """Returns 1000 times the squared maximum mean discrepancy of two sets, as CMMD has it (arXiv 2401.09603).

        mean_{i,j} k(xᵢ, xⱼ) + mean_{i,j} k(yᵢ, yⱼ) − 2 mean_{i,j} k(xᵢ, yⱼ),   k(x, y) = exp(−|x − y|²/(2 σ²)), σ = 10

    Pairs i = j are in the means, as published: the figure is never negative, and biased upward by little. CMMD itself
    is that of CLIP's embeddings, which are not here. Raises ValueError for different widths.
    """
    _check_widths(a, b)
    between = _kernel_sum(_gaussian, a.features, b.features) / (len(a.features) * len(b.features))
    return MMD_SCALE * max(a.within + b.within - 2 * between, 0.0)


def _check_widths(a: KernelSet, b: KernelSet) -> None:
    if a.features.shape[1] != b.features.shape[1]:
        raise ValueError(
            f"feature widths {a.features.shape[1]} and {b.features.shape[1]}: a distance needs equal widths"
        )


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    k = x @ y.T / x.shape[1] + 1
    return k * k * k


def _gaussian(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None, :] - 2 * x @ y.T
    return np.exp(np.maximum(squares, 0) / (-2 * MMD_SIGMA**2))


def _kernel_sum(kernel: Callable[[np.ndarray, np.ndarray], np.ndarray], x: np.ndarray, y: np.ndarray) -> float:
    """The sum of a kernel over all pairs, of which only blocks are in memory."""
    return sum(float(kernel(some, others).sum()) for some in _blocks(x) for others in _blocks(y))


def _blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    return (x[start : start + BLOCK] for start in range(0, len(x), BLOCK))
