"""What the `evaluation` section of a configuration says."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from tim_jax.evaluation import FEATURES, METRICS

LEAST = 4  # images: precision and recall look at a third neighbour


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """held_out: a split, or "" for none. samples: per step count and seed, 0: as many as the training part. rows: see
    Yardstick. every: steps of training between evaluations, 0: none; then of `count` samples (0: as `samples`) at each
    of `steps`, with each of `weights`. The rest: see configs/base.py."""

    held_out: str
    samples: int
    batch_size: int
    features: str
    inception: str
    metrics: tuple[str, ...]
    reference: str
    source: str
    path: str
    rows: int
    every: int
    steps: tuple[int, ...]
    count: int
    weights: tuple[str, ...]

    @classmethod
    def read(cls, section: Mapping[str, Any], sampling_weights: str) -> "EvaluationSettings":
        """Of the section; where it names no weights, those that sampling uses."""
        return cls(**{**section, "weights": tuple(section["weights"]) or (sampling_weights,)})

    def check(self, averages: Collection[str], channels: int) -> None:
        """Raises ValueError, naming key and value, for settings that cannot be. averages: names of averaged weights."""
        if self.features not in FEATURES:
            raise ValueError(f"evaluation.features is {self.features!r}; it must be one of {', '.join(FEATURES)}")
        if self.features == "inception" and channels not in (1, 3):
            raise ValueError(
                f"evaluation.features is 'inception', for images of 1 or 3 channels; data.channels is {channels}, "
                "and codecs.autoencoder names nothing to decode them by"
            )
        for name in self.metrics:
            if name not in METRICS:
                raise ValueError(f"evaluation.metrics has {name!r}; each must be one of {', '.join(METRICS)}")
        for name, least in (("batch_size", 1), ("rows", LEAST), ("every", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"evaluation.{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("samples", "count"):
            if getattr(self, name) != 0 and getattr(self, name) < LEAST:
                raise ValueError(f"evaluation.{name} is {getattr(self, name)}; it must be 0 or at least {LEAST}")
        for steps in self.steps:
            if steps < 1:
                raise ValueError(f"evaluation.steps has {steps}; each must be at least 1")
        for name in self.weights:
            if name != "online" and name not in averages:
                raise ValueError(
                    f"evaluation.weights has {name!r}; each must be online or one of {', '.join(averages)}"
                )
