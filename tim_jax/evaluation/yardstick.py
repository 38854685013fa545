"""What samples are measured against: metrics, and the parts of the real data that they look at, prepared once."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tim_jax.evaluation import kept
from tim_jax.evaluation.metrics import Metric
from tim_jax.evaluation.references import Reference

HELD_OUT = "_held_out"  # ends the names of figures against the held-out part


def needs_of(metrics: Mapping[str, Metric], reference: bool = False) -> tuple[kept.Need, ...]:
    """What must be kept of a set for these metrics; of a reference also the rows that the floor is taken of."""
    needs = {metric.need: None for metric in metrics.values()}
    if reference:
        needs |= {(metric.output, "rows"): None for metric in metrics.values() if not metric.alone}
    return tuple(needs)


def gather(batches: Iterable[tuple[dict, np.ndarray]], needs: Iterable[kept.Need], chosen: np.ndarray) -> kept.Summary:
    """The summary of a set whose features come as ({output: (n, d)}, numbers of the images (n,)). chosen: see kept.

    ValueError if there are no images, or features that are not finite.
    """
    summary: kept.Summary = {}
    for outputs, indices in batches:
        if len(indices):
            summary = kept.merge(summary, kept.summarise(outputs, indices, needs, chosen))
    if not summary:
        raise ValueError("there are no images")
    return summary


@dataclasses.dataclass(frozen=True)
class Yardstick:
    """parts: what samples are compared with, by the end of a figure's name ("": the training part, HELD_OUT). rows: the
    most images of which metrics that need single features look at."""

    metrics: Mapping[str, Metric]
    parts: Mapping[str, Reference]
    rows: int

    def figures(self, batches: Iterable[tuple[dict, np.ndarray]], count: int) -> dict[str, float]:
        """{NAME, NAME_held_out: figure} of `count` samples, their features as in `gather`."""
        summary = gather(batches, needs_of(self.metrics), kept.choose(count, self.rows))
        return self._compare(_prepared(self.metrics, summary), self._parts)

    def floor(self, seeds: Iterable[int]) -> dict[str, float]:
        """The figures of real images: the training part in halves against each other, and against the held-out part.

        NAME: the mean over one random split of its kept rows per seed; metrics that need no reference: the part's own.
        NAME_held_out: the held-out part as the reference of the training part.
        """
        training, floor = self.parts[""].summary, {}
        for name, metric in self.metrics.items():
            if metric.alone:
                if metric.need in training:
                    floor[name] = metric.compare(self._parts[""][metric.need, metric.prepare], None)
                continue
            rows = training.get((metric.output, "rows"))
            if rows is None or len(rows.values) < 2:
                continue
            splits = []
            for seed in seeds:
                order = np.random.default_rng(seed).permutation(len(rows.values))
                splits.append(metric(*(rows.values[half] for half in np.array_split(order, 2))))
            floor[name] = float(np.mean(splits))
        others = {end: part for end, part in self._parts.items() if end}
        return floor | {
            name: value for name, value in self._compare(self._parts[""], others).items() if name.endswith(HELD_OUT)
        }

    @functools.cached_property
    def _parts(self) -> dict[str, dict[Any, Any]]:
        return {end: _prepared(self.metrics, part.summary) for end, part in self.parts.items()}

    def _compare(self, samples, parts):
        found = {}
        for name, metric in self.metrics.items():
            key = metric.need, metric.prepare
            if metric.alone:
                found[name] = metric.compare(samples[key], None) if key in samples else None
                continue
            found |= {name + end: metric.compare(samples[key], part[key]) for end, part in parts.items()}
        return found


def _prepared(metrics, summary):
    """{(need, prepare): prepared}: metrics that prepare alike share it."""
    wanted = {(metric.need, metric.prepare) for metric in metrics.values()}
    return {(need, prepare): prepare(summary[need]) for need, prepare in wanted if need in summary}
