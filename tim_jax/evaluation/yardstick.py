"""The yardstick of an evaluation: metrics, and the references that samples are measured against, prepared once."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tim_jax.evaluation import summaries
from tim_jax.evaluation.metrics import Metric
from tim_jax.evaluation.references import Reference

HELD_OUT = "_held_out"  # the suffix of figures against the held-out part


def needs_of(metrics: Mapping[str, Metric], reference: bool = False) -> tuple[summaries.Need, ...]:
    """Returns the (output, kind) pairs that a summary needs for these metrics.

    Args:
        metrics: {name: Metric}.
        reference: whether the summary is that of a reference, whose floor is taken from raw features.
    """
    needs = {metric.need: None for metric in metrics.values()}
    if reference:
        needs |= {(metric.output, "raw"): None for metric in metrics.values() if not metric.reference_free}
    return tuple(needs)


def gather(
    batches: Iterable[tuple[dict, np.ndarray]], needs: Iterable[summaries.Need], count: int, max_images: int
) -> summaries.Summary:
    """Summarises a set of images whose features come in batches.

    Args:
        batches: pairs of {output: (n, d)} and the numbers (n,) of the images.
        needs: the (output, kind) pairs that the summary is to have.
        count: images in the set.
        max_images: the most images of which raw features are stored.

    Raises:
        ValueError: if there are no images, or features that are not finite.
    """
    summary: summaries.Summary = {}
    places = summaries.shuffled_places(count)
    for outputs, indices in batches:
        if len(indices):
            summary = summaries.merge(summary, summaries.summarise(outputs, places[indices], needs, max_images))
    if not summary:
        raise ValueError("there are no images")
    return summary


@dataclasses.dataclass(frozen=True)
class Yardstick:
    """What samples are measured against.

    Attributes:
        metrics: {name: Metric}.
        references: what samples are compared with, by the suffix of a figure's name: "" for the training part,
            HELD_OUT for the held-out part.
        max_images: the most images of which raw features are compared.
    """

    metrics: Mapping[str, Metric]
    references: Mapping[str, Reference]
    max_images: int

    def figures(self, batches: Iterable[tuple[dict, np.ndarray]], count: int) -> dict[str, float]:
        """Measures samples.

        Args:
            batches: the features of the samples, as in `gather`.
            count: number of samples.

        Returns:
            {NAME, NAME_held_out: figure}.

        Raises:
            ValueError: if there are no samples, or features that are not finite.
        """
        summary = gather(batches, needs_of(self.metrics), count, self.max_images)
        return self._compare(_prepared(self.metrics, summary), self._prepared_references)

    def floor(self, seeds: Iterable[int]) -> dict[str, float]:
        """Measures real images, which tells what figures good samples can be expected to reach.

        Args:
            seeds: of the random splits of the training part.

        Returns:
            NAME: the two halves of a random split of the stored training features against each other, the mean over
            one split per seed; for metrics that need no reference, the figure of the training part itself.
            NAME_held_out: the training part against the held-out part.
        """
        training, floor = self.references[""].summary, {}
        for name, metric in self.metrics.items():
            if metric.reference_free:
                if metric.need in training:
                    floor[name] = metric.compare(self._prepared_references[""][metric.need, metric.prepare], None)
                continue
            raw = training.get((metric.output, "raw"))
            if raw is None or len(raw.values) < 2:
                continue
            splits = []
            for seed in seeds:
                order = np.random.default_rng(seed).permutation(len(raw.values))
                splits.append(metric(*(raw.values[half] for half in np.array_split(order, 2))))
            floor[name] = float(np.mean(splits))
        others = {suffix: prepared for suffix, prepared in self._prepared_references.items() if suffix}
        return floor | {
            name: value
            for name, value in self._compare(self._prepared_references[""], others).items()
            if name.endswith(HELD_OUT)
        }

    @functools.cached_property
    def _prepared_references(self) -> dict[str, dict[Any, Any]]:
        return {suffix: _prepared(self.metrics, reference.summary) for suffix, reference in self.references.items()}

    def _compare(self, samples, references):
        found = {}
        for name, metric in self.metrics.items():
            key = metric.need, metric.prepare
            if metric.reference_free:
                found[name] = metric.compare(samples[key], None) if key in samples else None
                continue
            found |= {name + suffix: metric.compare(samples[key], other[key]) for suffix, other in references.items()}
        return found


def _prepared(metrics, summary):
    """Returns {(need, prepare): prepared}: metrics that prepare alike share it."""
    wanted = {(metric.need, metric.prepare) for metric in metrics.values()}
    return {(need, prepare): prepare(summary[need]) for need, prepare in wanted if need in summary}
