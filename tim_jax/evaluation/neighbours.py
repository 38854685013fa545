"""Precision and recall of samples by nearest neighbours (Kynkäänniemi et al. 2019), in float64.

The support of a set is taken to be the union of balls around its members, each as wide as the distance to the member's
third neighbour. Precision is the share of samples within the support of the reference, and recall is the share of the
reference within the support of the samples.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tim_jax.evaluation import statistics
from tim_jax.evaluation.summaries import RawFeatures

K = 3
BLOCK = 2**23  # entries of the matrix of distances that are in memory at a time
ROUNDING = 1e-12  # of a squared distance, relative to the squared norms that it is made of


class Balls(NamedTuple):
    """Balls around n features of width d, all in float64.

    Attributes:
        centres: (n, d).
        norms: (n,) squared norms of the centres.
        squares: (n,) squared radii.
    """

    centres: np.ndarray
    norms: np.ndarray
    squares: np.ndarray


def balls(raw: RawFeatures) -> Balls:
    """Returns balls around features (n, d), n ≥ 4, each reaching its third neighbour.

    It takes time n²d, and memory in blocks. Raises ValueError for fewer features.
    """
    features = statistics.finite(raw.values)
    if len(features) <= K:
        raise ValueError(f"count {len(features)}: precision and recall need at least {K + 1} features")
    norms = (features**2).sum(axis=1)
    # The nearest of all is the feature itself.
    squares = [np.partition(block, K, axis=1)[:, K] for block in _squares(features, norms, features, norms)]
    return Balls(features, norms, np.maximum(np.concatenate(squares), 0.0))


def precision(samples: Balls, reference: Balls) -> float:
    """Returns the share of samples that lie in one of the reference's balls, in [0, 1]."""
    return _share(samples, reference)


def recall(samples: Balls, reference: Balls) -> float:
    """Returns the share of the reference that lies in one of the samples' balls, in [0, 1]."""
    return _share(reference, samples)


def covered_by_others(of: Balls) -> float:
    """Returns the share of features that lie in the ball of another one, in [0, 1].

    It is the precision of a fresh feature from the same distribution: without feature i, the ball around j would still
    reach its third neighbour, and i lies in it if i is one of the first three.
    """
    inside, first = 0, 0
    for block in _squares(of.centres, of.norms, of.centres, of.norms):
        rows = np.arange(len(block))
        norms = of.norms[first : first + len(block), None] + of.norms[None, :]
        within = block <= of.squares[None, :] + ROUNDING * norms
        within[rows, first + rows] = False
        inside += int(within.any(axis=1).sum())
        first += len(block)
    return inside / len(of.centres)


def _share(points: Balls, support: Balls) -> float:
    widths = points.centres.shape[1], support.centres.shape[1]
    if widths[0] != widths[1]:
        raise ValueError(f"feature widths {widths[0]} and {widths[1]}: a distance needs equal widths")
    inside, first = 0, 0
    for block in _squares(points.centres, points.norms, support.centres, support.norms):
        norms = points.norms[first : first + len(block), None] + support.norms[None, :]
        inside += int((block <= support.squares[None, :] + ROUNDING * norms).any(axis=1).sum())
        first += len(block)
    return inside / len(points.centres)


def _squares(x: np.ndarray, x_norms: np.ndarray, y: np.ndarray, y_norms: np.ndarray) -> Iterator[np.ndarray]:
    """Yields squared distances (some of x, all of y), block by block."""
    size = max(1, BLOCK // len(y))
    for first in range(0, len(x), size):
        part = slice(first, first + size)
        yield x_norms[part, None] + y_norms[None, :] - 2 * (x[part] @ y.T)
