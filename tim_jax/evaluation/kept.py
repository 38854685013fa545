"""What is kept of a set of images while its features stream by: moments, rows, or class probabilities by split.

A summary is a dict {(output, kind): value} for outputs of the features ("features", "spatial", "logits") and kinds of
KEPT. A value is a NamedTuple of arrays. Summaries of two disjoint sets merge to that of their union, whatever the
split: sums are in float64.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import scipy.special

from tim_jax.evaluation import statistics

SPLIT = 5000  # consecutive images that an Inception score is taken of, as published


class Kept(NamedTuple):
    """of: (features (n, d), numbers of the images in their set (n,)) -> value. merge: (value, value) -> value."""

    value: type
    of: Callable[[np.ndarray, np.ndarray], Any]
    merge: Callable[[Any, Any], Any]


class Rows(NamedTuple):
    """The features themselves, (n, d)."""

    values: np.ndarray


class Splits(NamedTuple):
    """Of class probabilities p (K,), by split: counts (S,), Σ p as sums (S, K), Σ Σₖ pₖ log pₖ as negentropies (S,)."""

    counts: np.ndarray
    sums: np.ndarray
    negentropies: np.ndarray


def splits_of(logits: np.ndarray, indices: np.ndarray) -> Splits:
    """Splits of logits (n, K) of the images with these numbers; image i belongs to split i // 5000."""
    logs = scipy.special.log_softmax(statistics.finite(logits), axis=1)
    chances, split = np.exp(logs), np.asarray(indices) // SPLIT
    value = Splits(*(np.zeros((split.max() + 1, *more)) for more in ((), (logs.shape[1],), ())))
    np.add.at(value.counts, split, 1)
    np.add.at(value.sums, split, chances)
    np.add.at(value.negentropies, split, (chances * logs).sum(axis=1))
    return value


def _merge_splits(a: Splits, b: Splits) -> Splits:
    def add(x, y):
        longer, shorter = (x, y) if len(x) >= len(y) else (y, x)
        total = longer.copy()
        total[: len(shorter)] += shorter
        return total

    return Splits(*(add(x, y) for x, y in zip(a, b, strict=True)))


KEPT = {
    "moments": Kept(statistics.Statistics, lambda features, _: statistics.of(features), statistics.merge),
    "rows": Kept(
        Rows,
        lambda features, _: Rows(np.asarray(features)),
        lambda a, b: Rows(np.concatenate([a.values, b.values])),
    ),
    "splits": Kept(Splits, splits_of, _merge_splits),
}

Need = tuple[str, str]  # (output, kind)
Summary = dict[Need, Any]


def summarise(
    outputs: dict[str, np.ndarray], indices: np.ndarray, needs: Iterable[Need], chosen: np.ndarray
) -> Summary:
    """The summary of images with the given outputs {name: (n, d)} and numbers (n,).

    needs: what is kept. chosen: (N,) bool, of which images of the whole set rows are kept (see `choose`).
    """
    summary, some = {}, chosen[indices]
    for output, kind in needs:
        of = some if kind == "rows" else np.ones(len(indices), bool)
        if of.any():
            summary[output, kind] = KEPT[kind].of(outputs[output][of], indices[of])
    return summary


def merge(a: Summary, b: Summary) -> Summary:
    """The summary of the union of two disjoint sets; {} is that of no images."""
    both = {need: KEPT[need[1]].merge(a[need], b[need]) for need in a.keys() & b.keys()}
    return {**a, **b, **both}


def choose(count: int, most: int) -> np.ndarray:
    """(count,) bool: which images of a set rows are kept of, at most `most` of them, at random, always the same."""
    chosen = np.zeros(count, bool)
    chosen[np.random.default_rng(0).permutation(count)[:most]] = True
    return chosen
