"""Summaries of a set of images, gathered while the features of its images stream by.

A summary is a dict {(output, kind): value}: for outputs of the features ("features", "spatial", "logits") and for the
kinds in KINDS it holds a NamedTuple of arrays. The summaries of two disjoint sets merge to that of their union, however
a set was split, since all sums are in float64.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from tim_jax.evaluation import statistics

SPLIT = 5000  # images over which one Inception score is taken, as published


class SummaryKind(NamedTuple):
    """One way to summarise features.

    Attributes:
        value: the NamedTuple of arrays that holds the summary.
        of: maps features (n, d) and the places (n,) that their images have in the shuffled set to a value.
        merge: maps the values of two disjoint sets to that of their union.
    """

    value: Any
    of: Callable[[np.ndarray, np.ndarray], Any]
    merge: Callable[[Any, Any], Any]


class RawFeatures(NamedTuple):
    """The features themselves, (n, d), for metrics that compare single images."""

    values: np.ndarray


class Digests(NamedTuple):
    """Digests of images, (n, w) uint32, by which duplicates are found."""

    values: np.ndarray


class Splits(NamedTuple):
    """Sums over class probabilities p (K,) for each of S splits of a set.

    Attributes:
        counts: (S,) number of images in a split.
        sums: (S, K) sums of p.
        negentropies: (S,) sums of Σₖ pₖ log pₖ.
    """

    counts: np.ndarray
    sums: np.ndarray
    negentropies: np.ndarray


def splits_of(logits: np.ndarray, places: np.ndarray) -> Splits:
    """Summarises class probabilities split by split.

    Args:
        logits: (n, K), of which the softmax gives probabilities.
        places: (n,) of the images in the shuffled set; that at place i belongs to split i // SPLIT.

    Returns:
        The Splits, of which those before the first image are empty.
    """
    import scipy.special  # slow to import

    logs = scipy.special.log_softmax(statistics.finite(logits), axis=1)
    probabilities, split = np.exp(logs), np.asarray(places) // SPLIT
    value = Splits(*(np.zeros((split.max() + 1, *more)) for more in ((), (logs.shape[1],), ())))
    np.add.at(value.counts, split, 1)
    np.add.at(value.sums, split, probabilities)
    np.add.at(value.negentropies, split, (probabilities * logs).sum(axis=1))
    return value


def _merge_splits(a: Splits, b: Splits) -> Splits:
    def add(x, y):
        longer, shorter = (x, y) if len(x) >= len(y) else (y, x)
        total = longer.copy()
        total[: len(shorter)] += shorter
        return total

    return Splits(*(add(x, y) for x, y in zip(a, b, strict=True)))


KINDS = {
    "moments": SummaryKind(statistics.Statistics, lambda features, _: statistics.of(features), statistics.merge),
    "raw": SummaryKind(
        RawFeatures,
        lambda features, _: RawFeatures(np.asarray(features)),
        lambda a, b: RawFeatures(np.concatenate([a.values, b.values])),
    ),
    "digests": SummaryKind(
        Digests,
        lambda found, _: Digests(np.asarray(found, np.uint32)),
        lambda a, b: Digests(np.concatenate([a.values, b.values])),
    ),
    "splits": SummaryKind(Splits, splits_of, _merge_splits),
}

Need = tuple[str, str]  # (output, kind)
Summary = dict[Need, Any]


def shuffled_places(count: int) -> np.ndarray:
    """The places (count,) of the images of a set in a shuffle that is always the same.

    Data sets are often stored class by class. Whatever looks at some images of a set, or at a part of it after another,
    takes them by these places.
    """
    places = np.empty(count, np.int64)
    places[np.random.default_rng(0).permutation(count)] = np.arange(count)
    return places


def summarise(outputs: dict[str, np.ndarray], places: np.ndarray, needs: Iterable[Need], max_images: int) -> Summary:
    """Summarises a batch of images.

    Args:
        outputs: {name: (n, d)} features of the images.
        places: (n,) of the images in their shuffled set (see `shuffled_places`).
        needs: the (output, kind) pairs that the summary is to have.
        max_images: how many images of the set have their raw features stored, those at the first places.

    Returns:
        The summary. It lacks the kind "raw" where none of the images has its features stored.
    """
    summary = {}
    for output, kind in needs:
        of = places < max_images if kind == "raw" else np.ones(len(places), bool)
        if of.any():
            summary[output, kind] = KINDS[kind].of(outputs[output][of], places[of])
    return summary


def merge(a: Summary, b: Summary) -> Summary:
    """Returns the summary of the union of two disjoint sets; {} is the summary of no images."""
    both = {need: KINDS[need[1]].merge(a[need], b[need]) for need in a.keys() & b.keys()}
    return {**a, **b, **both}
