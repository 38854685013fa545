"""A metric: what it needs of two sets of images, and how it compares them.

Sets are summarised once (see kept.py), prepared once, and then compared, so that a reference costs nothing twice.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tim_jax.evaluation import distances, kept, neighbours, score


class Metric(NamedTuple):
    """title: of its column. output, kind: what it needs of a set. prepare: value of that kind -> prepared.

    compare: (prepared samples, prepared reference) -> float. alone: the reference is not looked at. higher: better.
    """

    title: str
    output: str
    kind: str
    prepare: Callable[[Any], Any]
    compare: Callable[[Any, Any], float]
    alone: bool = False
    higher: bool = False

    @property
    def need(self) -> kept.Need:
        return self.output, self.kind

    def of(self, features: np.ndarray) -> Any:
        """Features (n, d) of a whole set, prepared."""
        return self.prepare(kept.KEPT[self.kind].of(features, np.arange(len(features))))

    def __call__(self, samples: np.ndarray, reference: np.ndarray) -> float:
        """The figure of features (n, d) of samples and (m, d) of a reference."""
        return self.compare(self.of(samples), self.of(reference))


METRICS = {
    "frechet": Metric("Fréchet", "features", "moments", distances.gaussian, distances.frechet_distance),
    "sfid": Metric("sFID", "spatial", "moments", distances.gaussian, distances.frechet_distance),
    "kernel": Metric("kernel", "features", "rows", distances.kernel_set, distances.kernel_distance),
    "inception_score": Metric(
        "Inception score", "logits", "splits", score.inception_score, lambda a, _: a, alone=True, higher=True
    ),
    "precision": Metric("precision", "features", "rows", neighbours.balls, neighbours.precision, higher=True),
    "recall": Metric("recall", "features", "rows", neighbours.balls, neighbours.recall, higher=True),
}
TITLES = {("inception", "frechet"): "FID", ("inception", "kernel"): "KID"}  # by features, where they have a name


def chosen(outputs, names=()) -> dict[str, Metric]:
    """The metrics of these names, all where there are none, that features with these outputs can serve.

    Raises ValueError for a name that is not in METRICS, or needs an output that the features do not have.
    """
    for name in names:
        if name not in METRICS:
            raise ValueError(f"evaluation.metrics has {name!r}; each must be one of {', '.join(METRICS)}")
        if METRICS[name].output not in outputs:
            raise ValueError(
                f"evaluation.metrics has {name!r}, which needs {METRICS[name].output!r} of evaluation.features; "
                f"these have only {', '.join(outputs)}"
            )
    return {
        name: metric for name, metric in METRICS.items() if metric.output in outputs and (not names or name in names)
    }
