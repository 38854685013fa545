"""What perfect samples would score: figures of images drawn from the very distribution that the reference is from.

Nothing can be drawn from that distribution any more, so it is estimated from the reference's own features, by subsets
that have no image in common.

- A Fréchet distance of finite sets is biased. For sets of n and m images from one distribution its mean is nearly a
  function of h = 1/n + 1/m that is 0 at 0 (Chong & Forsyth 2020 take it to be a line). Splits of the reference give it
  at h, 2h and 4h, and c₁h + c₂h² + c₃h³ through the three gives it at the sizes of the table (`extrapolated`).
- The kernel distance has no bias: its mean is 0, and the standard deviation of equal distributions goes as h, by which
  that of the splits is brought to the sizes of the table (`unbiased`).
- Precision does not depend on the number of samples: it is the share of reference images within the balls of the
  others. Recall is the same of a subset that is as large as the set of samples (`covered`, `covered_by_samples`).
- A metric that looks at no reference is that of as many images of the reference (`of_subset`).
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tim_jax.evaluation import neighbours
from tim_jax.evaluation.summaries import RawFeatures

LEVELS = 3  # of splits: at h, 2h and 4h
FEWEST = 5  # images that floors are estimated from: one, and the third neighbours of four others


class Bias(NamedTuple):
    """The mean figure of two finite sets from one distribution, as a function of h = 1/n + 1/m that is 0 at 0.

    Attributes:
        unit: the smallest h that was measured.
        coefficients: of h/unit, (h/unit)², ….
    """

    unit: float
    coefficients: np.ndarray

    def __call__(self, h: float) -> float:
        """The mean figure at h, which is to lie between 0 and little more than `unit`."""
        powers = np.arange(1, len(self.coefficients) + 1)
        return float(self.coefficients @ (h / self.unit) ** powers)


@dataclasses.dataclass(frozen=True)
class Given:
    """What a floor is estimated from.

    Attributes:
        metric: the `metrics.Metric`.
        raw: (m, d) features of images of the reference, all or as many as are stored.
        prepared: of the whole reference, see `Metric.prepare`.
        count: samples that the metric looks at.
        images: of the reference that the metric looks at.
        seeds: of the random splits and subsets.
    """

    metric: Any
    raw: np.ndarray
    prepared: Any
    count: int
    images: int
    seeds: Sequence[int]

    @property
    def h(self) -> float:
        """1/count + 1/images."""
        return 1 / self.count + 1 / self.images

    def subsets(self, size: int) -> Iterator[np.ndarray]:
        """For each seed the features (size, d) of that many images at random."""
        for seed in self.seeds:
            yield self.raw[np.random.default_rng(seed).permutation(len(self.raw))[:size]]

    @functools.cached_property
    def bias(self) -> Bias | None:
        """Of the metric, through the means of `split_figures`; None where the reference is too small to split."""
        levels = split_figures(self, smallest=2)
        if not levels:
            return None
        multiples = np.array([h / levels[0][0] for h, _ in levels])
        powers = multiples[:, None] ** np.arange(1, len(levels) + 1)[None, :]
        return Bias(levels[0][0], np.linalg.solve(powers, [figures.mean() for _, figures in levels]))


Floor = dict[str, float]  # "": the mean figure, "_spread": its standard deviation where only that tells anything


def split_figures(given: Given, smallest: int) -> list[tuple[float, np.ndarray]]:
    """Figures of disjoint sets of real images against each other.

    The first level is one pair for each seed, as near to the sizes of the table as one reference allows: count images
    against the others, or halves. Both are halved for the next level, which gives two pairs, and so on.

    Args:
        given: of a metric that compares two sets.
        smallest: images that a set must have.

    Returns:
        [(h, figures of all pairs)], at most LEVELS; fewer where sets would be too small.
    """
    size, figures = len(given.raw), []
    first = min(given.count, size // 2)
    for level in range(LEVELS):
        parts = 2**level
        if min(first, size - first) // parts < smallest:
            break
        found = []
        for seed in given.seeds:
            order = np.random.default_rng(seed).permutation(size)
            pairs = (np.array_split(part, parts) for part in (order[:first], order[first:]))
            found += [given.metric(given.raw[a], given.raw[b]) for a, b in zip(*pairs, strict=True)]
        figures.append((parts * (1 / first + 1 / (size - first)), np.array(found)))
    return figures


def extrapolated(given: Given) -> Floor:
    """The mean figure of perfect samples by a metric's bias; {} where the reference is too small to split."""
    return {} if given.bias is None else {"": max(given.bias(given.h), 0.0)}


def unbiased(given: Given) -> Floor:
    """0, and the standard deviation that figures of equal distributions have, which is proportional to h."""
    levels = split_figures(given, smallest=2)
    if not levels:
        return {}
    scaled = np.concatenate([figures * (given.h / h) for h, figures in levels])
    return {"": 0.0, "_spread": float(np.sqrt(np.mean(scaled**2)))}


def covered(given: Given) -> Floor:
    """The share of reference images that lie within the balls of the others: the precision of perfect samples."""
    return {"": neighbours.covered_by_others(given.prepared)}


def covered_by_samples(given: Given) -> Floor:
    """The share of images that lie within the balls of `count` others: the recall of perfect samples.

    The others are as many as the reference has where there are more samples.
    """
    if given.count + 1 >= len(given.raw):
        return covered(given)
    shares = [
        neighbours.covered_by_others(neighbours.balls(RawFeatures(some))) for some in given.subsets(given.count + 1)
    ]
    return {"": float(np.mean(shares))}


def of_subset(given: Given) -> Floor:
    """The figure of `count` reference images, for metrics that look at no reference; of all where there are fewer."""
    if given.count >= len(given.raw):
        return {"": given.metric.compare(given.prepared, None)}
    return {"": float(np.mean([given.metric.compare(given.metric.of(x), None) for x in given.subsets(given.count)]))}


def against(given: Given, other: Any, others: int) -> float:
    """The mean figure of perfect samples against another set of real images, such as those that are held out.

    Perfect samples are `count` images of the reference. Where there are not as many, they are all of them, and what the
    larger number would change of a biased metric is taken from its bias.

    Args:
        given: of the reference.
        other: what was prepared of the other set.
        others: images in the other set that the metric looks at.
    """
    metric = given.metric
    if given.count < min(given.images, len(given.raw) + 1):
        return float(np.mean([metric.compare(metric.of(some), other) for some in given.subsets(given.count)]))
    found = metric.compare(given.prepared, other)
    if metric.floor is not extrapolated or given.count == given.images or (bias := given.bias) is None:
        return found
    return max(found + bias(1 / given.count + 1 / others) - bias(1 / given.images + 1 / others), 0.0)
