"""What the `evaluation` section of a configuration says."""

import dataclasses
from collections.abc import Collection

from tim_jax.evaluation import FEATURES, METRICS
from tim_jax.evaluation.metrics import BITS_PER_DIM

AUTO = "auto"
LABELS = ("data", "balanced")
MOST_IMAGES = 10**7  # that samples are measured by
MIN_IMAGES = 4  # precision and recall look at a third neighbour
UNUSED = {
    ("evaluation.path",): (
        "evaluation.source is '' or embedded",
        lambda c: c.evaluation.source in ("", "digits", "photos", "emoji"),
    ),
    ("evaluation.labels",): (
        "model.condition is text or objective.coupling restores images, which have labels of their own",
        lambda c: c.model.condition == "text" or c.objective.coupling.task != "none",
    ),
    ("evaluation.likelihood.steps", "evaluation.likelihood.probes", "evaluation.likelihood.num_images"): (
        f"evaluation.metrics is without {BITS_PER_DIM}",
        lambda c: BITS_PER_DIM not in c.evaluation.metrics,
    ),
}


@dataclasses.dataclass(frozen=True)
class PeriodicEvaluation:
    """Evaluations while training."""

    every: int = 0  # steps of training between evaluations; 0: none
    steps: tuple[int, ...] = (1, 2, 4, 8)  # step counts that are sampled with
    num_samples: int = 0  # per step count; 0: as evaluation.num_samples
    emas: tuple[str, ...] = ()  # names of EMAs, or "online"; (): sampling.ema

    def check(self, emas: Collection[str]) -> None:
        """Raises ValueError, naming key and value, for settings that cannot be. emas: names of EMAs."""
        if self.every < 0:
            raise ValueError(f"evaluation.periodic.every is {self.every}; it must be at least 0")
        if self.num_samples != 0 and self.num_samples < MIN_IMAGES:
            raise ValueError(
                f"evaluation.periodic.num_samples is {self.num_samples}; it must be 0 or at least {MIN_IMAGES}"
            )
        if not self.steps:
            raise ValueError("evaluation.periodic.steps is (); it must name at least one step count")
        if any(steps < 1 for steps in self.steps):
            raise ValueError(f"evaluation.periodic.steps is {self.steps}; each of them must be at least 1")
        if not set(self.emas) <= {"online", *emas}:
            raise ValueError(
                f"evaluation.periodic.emas is {self.emas}; each of them must be one of {', '.join(('online', *emas))}"
            )


@dataclasses.dataclass(frozen=True)
class LikelihoodSettings:
    """How bits_per_dim is measured, by `python -m tim_jax.evaluate` alone."""

    steps: int = 64  # of the Runge-Kutta method, of four network evaluations each
    probes: int = 1  # vectors of Hutchinson's estimate of the divergence; 0: exact, a pass for each number of an image
    num_images: int = 1000  # of the training and of the held-out part, at random; 0: all

    def check(self) -> None:
        """Raises ValueError, naming key and value, for settings that cannot be."""
        for name, minimum in (("steps", 1), ("probes", 0), ("num_images", 0)):
            if getattr(self, name) < minimum:
                raise ValueError(
                    f"evaluation.likelihood.{name} is {getattr(self, name)}; it must be at least {minimum}"
                )


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """How samples are measured, by `python -m tim_jax.evaluate` and while training."""

    held_out: str = "auto"  # the part that is held out; "": none; "auto": held_out, validation, test, … if there is one
    num_samples: int = 0  # per step count and seed; 0: as many as the training part has images
    labels: str = "data"  # of samples: "data", as often as in the training part; "balanced", each class in it alike
    batch_size: int = 512
    features: str = "pixels"  # what images are compared by: a name in tim_jax.evaluation.FEATURES
    inception: str = ""  # file of the weights of "inception"; "": below loader.directory
    dinov2: str = ""  # published folder of "dinov2", or hf://owner/repository; "": dinov2-large below loader.directory
    # names in tim_jax.evaluation.METRICS, and bits_per_dim; (): all that the features can serve
    metrics: tuple[str, ...] = ()
    reference: str = ""  # a stored or published (npz) reference in place of the training part
    source: str = ""  # of real images of the samples' size, as data.source; "": that of training
    path: str = ""  # where these are, as data.path
    max_images: int = 10000  # of which kernel distances, precision and recall look at single features
    likelihood: LikelihoodSettings = LikelihoodSettings()
    # while training
    periodic: PeriodicEvaluation = PeriodicEvaluation()

    def check(self, emas: Collection[str], channels: int) -> None:
        """Raises ValueError, naming key and value, for settings that cannot be.

        Args:
            emas: names of EMAs.
            channels: of the images that are compared.
        """
        if self.features not in FEATURES:
            raise ValueError(f"evaluation.features is {self.features!r}; it must be one of {', '.join(FEATURES)}")
        if self.features != "pixels" and channels not in (1, 3):
            raise ValueError(
                f"evaluation.features is {self.features!r}; it must be 'pixels' for examples of other than 1 or 3 "
                f"channels (data.channels is {channels}) that no codecs.autoencoder decodes"
            )
        if not set(self.metrics) <= {*METRICS, BITS_PER_DIM}:
            known = ", ".join((*METRICS, BITS_PER_DIM))
            raise ValueError(f"evaluation.metrics is {self.metrics}; each of them must be one of {known}")
        if self.labels not in LABELS:
            raise ValueError(f"evaluation.labels is {self.labels!r}; it must be one of {', '.join(LABELS)}")
        for name, minimum in (("batch_size", 1), ("max_images", MIN_IMAGES)):
            if getattr(self, name) < minimum:
                raise ValueError(f"evaluation.{name} is {getattr(self, name)}; it must be at least {minimum}")
        if self.num_samples != 0 and not MIN_IMAGES <= self.num_samples <= MOST_IMAGES:
            raise ValueError(
                f"evaluation.num_samples is {self.num_samples}; it must be 0, or {MIN_IMAGES} to {MOST_IMAGES}"
            )
        self.likelihood.check()
        self.periodic.check(emas)
