"""Metrics: what each of them needs of two sets of images, and how it compares them.

A set is summarised once (see summaries.py) and prepared once, and is then compared any number of times, so that a
reference is never paid for twice. To add a metric, write a file with its `prepare` and `compare`, and give it a line in
METRICS: the any-step table, the floors, stored references and evaluation while training take it from there.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np

from tim_jax.evaluation import distances, floors, neighbours, score, summaries


class Metric(NamedTuple):
    """One metric.

    Attributes:
        title: heading of its column.
        output: the output of the features that it looks at.
        kind: the kind of summary that it needs of a set (see `summaries.KINDS`).
        prepare: maps a summary of that kind to what is compared.
        compare: maps what was prepared of the samples and of the reference to the figure.
        reference_free: whether the reference is not looked at.
        higher_is_better: whether larger figures are better.
        floor: estimates what perfect samples would score (see floors.py); None where that is not known.
    """

    title: str
    output: str
    kind: str
    prepare: Callable[[Any], Any]
    compare: Callable[[Any, Any], float]
    reference_free: bool = False
    higher_is_better: bool = False
    floor: Callable[[floors.Given], floors.Floor] | None = None

    @property
    def need(self) -> summaries.Need:
        """The (output, kind) pair that a summary must have."""
        return self.output, self.kind

    def of(self, features: np.ndarray) -> Any:
        """Summarises and prepares the features (n, d) of a whole set."""
        return self.prepare(summaries.KINDS[self.kind].of(features, summaries.shuffled_places(len(features))))

    def __call__(self, samples: np.ndarray, reference: np.ndarray) -> float:
        """Returns the figure of the features (n, d) of samples against the features (m, d) of a reference."""
        return self.compare(self.of(samples), self.of(reference))


METRICS = {
    "frechet": Metric(
        "Fréchet", "features", "moments", distances.gaussian, distances.frechet_distance, floor=floors.extrapolated
    ),
    "sfid": Metric(
        "sFID", "spatial", "moments", distances.gaussian, distances.frechet_distance, floor=floors.extrapolated
    ),
    "kernel": Metric(
        "kernel", "features", "raw", distances.kernel_set, distances.kernel_distance, floor=floors.unbiased
    ),
    "mmd": Metric("MMD", "embedding", "raw", distances.mmd_set, distances.mmd, floor=floors.extrapolated),
    "inception_score": Metric(
        "Inception score",
        "logits",
        "splits",
        score.inception_score,
        lambda a, _: a,
        reference_free=True,
        higher_is_better=True,
        floor=floors.of_subset,
    ),
    "precision": Metric(
        "precision",
        "features",
        "raw",
        neighbours.balls,
        neighbours.precision,
        higher_is_better=True,
        floor=floors.covered,
    ),
    "recall": Metric(
        "recall",
        "features",
        "raw",
        neighbours.balls,
        neighbours.recall,
        higher_is_better=True,
        floor=floors.covered_by_samples,
    ),
}
# Of the model itself, not of its samples; `chosen` leaves it to `tim_jax.runs.likelihood`.
BITS_PER_DIM = "bits_per_dim"
# (features, metric) with a name of its own. CMMD is the MMD of CLIP's embeddings alone.
TITLES = {("inception", "frechet"): "FID", ("inception", "kernel"): "KID", ("dinov2", "frechet"): "FD-DINOv2"}


def chosen(outputs: Collection[str], names: Collection[str] = ()) -> dict[str, Metric]:
    """Chooses the metrics that the features can serve.

    Args:
        outputs: names of the features' outputs.
        names: the metrics that are wanted; all that can be served if there are none.

    Returns:
        {name: Metric} in the order of METRICS.

    Raises:
        ValueError: for a name that is not in METRICS, or that needs an output which the features do not have.
    """
    for name in names:
        if name not in METRICS:
            raise ValueError(
                f"evaluation.metrics is {tuple(names)}; each of them must be one of {', '.join(METRICS)}, and "
                f"{name!r} is not"
            )
        if METRICS[name].output not in outputs:
            raise ValueError(
                f"evaluation.metrics is {tuple(names)}; they must suit evaluation.features, and {name!r} needs "
                f"{METRICS[name].output!r} of these, which have only {', '.join(outputs)}"
            )
    return {
        name: metric for name, metric in METRICS.items() if metric.output in outputs and (not names or name in names)
    }
