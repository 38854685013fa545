"""The yardstick of an evaluation: metrics, and the references that samples are measured against, prepared once."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tim_jax.evaluation import floors, summaries
from tim_jax.evaluation.metrics import Metric
from tim_jax.evaluation.references import Reference

HELD_OUT = "_held_out"  # the suffix of figures against the held-out part


def needs_of(metrics: Mapping[str, Metric], reference: bool = False) -> tuple[summaries.Need, ...]:
    """Returns the (output, kind) pairs that a summary needs for these metrics.

    Args:
        metrics: {name: Metric}.
        reference: whether the summary is that of a reference, whose floors are taken from raw features.
    """
    needs = {metric.need: None for metric in metrics.values()}
    if reference:
        needs |= {(metric.output, "raw"): None for metric in metrics.values()}
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

    def floor_at(self, count: int, seeds: Sequence[int]) -> dict[str, float]:
        """Estimates what `count` perfect samples would score; see floors.py for how.

        Args:
            count: number of samples.
            seeds: of random subsets of the training part.

        Returns:
            NAME: figures against these very references; NAME_spread: the standard deviation of those whose mean is
            known to be 0. Without what cannot be told: of references that do not say of how many images they are.
        """
        training = self.references[""].summary
        found: dict[str, float] = {}
        for name, metric in self.metrics.items():
            raw = training.get((metric.output, "raw"))
            images = self._images("", metric)
            if raw is None or metric.need not in training or len(raw.values) < floors.FEWEST or not images:
                continue
            prepared = self._prepared_references[""][metric.need, metric.prepare]
            looked_at = min(count, self.max_images) if metric.kind == "raw" else count
            given = floors.Given(metric, raw.values, prepared, looked_at, images, seeds)
            if metric.floor is not None:
                found |= {name + end: value for end, value in metric.floor(given).items()}
            if metric.reference_free:
                continue
            for suffix, others in self._prepared_references.items():
                if suffix and (number := self._images(suffix, metric)):
                    found[name + suffix] = floors.against(given, others[metric.need, metric.prepare], number)
        return found

    def _images(self, suffix: str, metric: Metric) -> int:
        """How many images of a reference a metric looks at; 0 where the reference does not say."""
        value = self.references[suffix].summary.get(metric.need)
        raw = self.references[suffix].summary.get((metric.output, "raw"))
        stored = len(raw.values) if raw is not None else 0
        if metric.kind != "moments" or value is None:
            return stored
        return value.count if value.count >= stored else 0  # published moments do not say

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
