"""Precision and recall of samples by nearest neighbours (Kynkäänniemi et al. 2019), in float64.

The set's support is taken to be the union of balls around its members, each as wide as the distance to the member's
third neighbour. Precision: the share of samples within the reference's. Recall: the other way round.
"""

from typing import NamedTuple

import numpy as np

from tim_jax.evaluation import statistics
from tim_jax.evaluation.kept import Rows

K = 3
BLOCK = 2**23  # entries of the matrix of distances that are held at a time
ROUNDING = 1e-12  # of a squared distance, relative to the squared norms that it is made of


class Balls(NamedTuple):
    """centres (n, d), norms: their squares (n,), squares: of the radii (n,); float64."""

    centres: np.ndarray
    norms: np.ndarray
    squares: np.ndarray


def balls(rows: Rows) -> Balls:
    """Balls around features (n, d), n ≥ 4, each reaching its third neighbour. Time n²d, memory in blocks."""
    features = statistics.finite(rows.values)
    if len(features) <= K:
        raise ValueError(f"count {len(features)}: precision and recall need at least {K + 1} features")
    norms = (features**2).sum(axis=1)
    # The nearest of all is the feature itself.
    squares = [np.partition(block, K, axis=1)[:, K] for block in _squares(features, norms, features, norms)]
    return Balls(features, norms, np.maximum(np.concatenate(squares), 0.0))


def precision(samples: Balls, reference: Balls) -> float:
    """The share of samples that lie in one of the reference's balls, in [0, 1]."""
    return _share(samples, reference)


def recall(samples: Balls, reference: Balls) -> float:
    """The share of the reference that lies in one of the samples' balls, in [0, 1]."""
    return _share(reference, samples)


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


def _squares(x, x_norms, y, y_norms):
    """Squared distances (some rows of x, all of y), block by block."""
    rows = max(1, BLOCK // len(y))
    for first in range(0, len(x), rows):
        part = slice(first, first + rows)
        yield x_norms[part, None] + y_norms[None, :] - 2 * (x[part] @ y.T)
