"""What the `evaluation` section of a configuration says."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from tim_jax.evaluation import FEATURES, METRICS

LEAST = 4  # images: precision and recall look at a third neighbour


@dataclasses.dataclass(frozen=True)
class PeriodicEvaluation:
    """every: steps of training between evaluations, 0: none; then of `num_samples` (0: as evaluation.num_samples) at
    each
    of `steps`, with each of `emas`."""

    every: int = 0
    steps: tuple[int, ...] = (1, 2, 4, 8)
    num_samples: int = 0
    emas: tuple[str, ...] = ()

    def check(self, emas: Collection[str]) -> None:
        """Raises ValueError, naming key and value, for settings that cannot be. emas: names of EMAs."""
        if self.every < 0:
            raise ValueError(f"evaluation.periodic.every is {self.every}; it must be at least 0")
        if self.num_samples != 0 and self.num_samples < LEAST:
            raise ValueError(f"evaluation.periodic.num_samples is {self.num_samples}; it must be 0 or at least {LEAST}")
        for steps in self.steps:
            if steps < 1:
                raise ValueError(f"evaluation.periodic.steps has {steps}; each must be at least 1")
        for name in self.emas:
            if name != "online" and name not in emas:
                raise ValueError(
                    f"evaluation.periodic.emas has {name!r}; each must be online or one of {', '.join(emas)}"
                )


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """held_out: a split, or "" for none. num_samples: per step count and seed, 0: as many as the training part.
    max_images: see Yardstick. The rest: see configs/base.py."""

    held_out: str
    num_samples: int
    batch_size: int
    features: str
    inception: str
    metrics: tuple[str, ...]
    reference: str
    source: str
    path: str
    max_images: int
    periodic: PeriodicEvaluation

    @classmethod
    def read(cls, section: Mapping[str, Any], sampling_ema: str) -> "EvaluationSettings":
        """Of the section; where it names no weights, those that sampling uses."""
        periodic = dict(section["periodic"])
        periodic["emas"] = tuple(periodic["emas"]) or (sampling_ema,)
        return cls(**{**section, "periodic": PeriodicEvaluation(**periodic)})

    def check(self, emas: Collection[str], channels: int) -> None:
        """Raises ValueError, naming key and value, for settings that cannot be. emas: names of EMAs."""
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
        for name, least in (("batch_size", 1), ("max_images", LEAST)):
            if getattr(self, name) < least:
                raise ValueError(f"evaluation.{name} is {getattr(self, name)}; it must be at least {least}")
        if self.num_samples != 0 and self.num_samples < LEAST:
            raise ValueError(f"evaluation.num_samples is {self.num_samples}; it must be 0 or at least {LEAST}")
        self.periodic.check(emas)
