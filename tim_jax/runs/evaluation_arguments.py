"""The arguments of python -m tim_jax.evaluate: what is measured of a run, and in which ways its samples are drawn."""

import contextlib
import dataclasses
import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from etils import epath

from tim_jax.config.keys import Unread, check_read
from tim_jax.config.run import Run
from tim_jax.evaluation.metrics import BITS_PER_DIM
from tim_jax.evaluation.settings import MIN_IMAGES, MOST_IMAGES
from tim_jax.system import paths

NEAREST = 24  # samples shown beside their nearest training image
METRICS = {"metrics": ("evaluation.metrics",)}
# What a sweep goes through: the argument, and the keys of the configuration that it stands for.
AXES = {
    "operator": ("sampling.steering.operator",),
    "steering": ("sampling.steering.method",),
    "weights": ("sampling.ema",),
    "sampler": ("sampling.sampler",),
    "plan": ("sampling.plan",),
    "guidance": ("sampling.guidance",),
    "guidance_interval": ("sampling.guidance_low", "sampling.guidance_high"),
}

# Arguments and keys that are about samples, and those that are about what is measured of them.
OF_SAMPLES = ("steps", "evaluations", "count", *(name for name in AXES if name != "weights"), "nearest", "export")
KEYS_OF_MEASURES = ("features", "inception", "dinov2", "reference", "max_images")
KEYS_OF_SAMPLES = Unread(
    ("sampling", *(f"evaluation.{name}" for name in ("num_samples", "labels", *KEYS_OF_MEASURES))), ("sampling.ema",)
)
KEYS_OF_FIGURES = Unread(tuple(f"evaluation.{name}" for name in ("metrics", "likelihood", *KEYS_OF_MEASURES)))

STEERED = (*AXES["operator"], *AXES["steering"])  # what samples are measured against depends on these


@dataclasses.dataclass(frozen=True)
class EvaluationArguments:
    """The arguments of the command.

    Attributes:
        workdir: the run's folder.
        steps: step counts; [] where evaluations are given.
        evaluations: of the network per image, in whose place each sampler takes its own number of steps.
        seeds: how many noises, for mean and spread.
        count: samples per step count and seed; None for `evaluation.num_samples`.
        nearest: samples shown beside their nearest training image; None for NEAREST, and with a sweep for none.
        export: the npz file that samples are written to in place of a table; None for a table.
        out: the folder that tables and pictures are written to; None for the workdir.
        operator: what samples are steered towards, such as super_resolution:4; () for none, or what the configuration
            names.
        steering: methods.
        weights: names of weights; () for the one that the configuration names, as with the others.
        sampler: names of samplers.
        plan: "sampler" for its own, "learned".
        guidance: scales.
        guidance_interval: in which guidance acts, as fractions of T_max.
        metrics: what is measured.
        given: the arguments that were given, as they were typed; {} for none.
    """

    workdir: str
    steps: list[int]
    evaluations: Collection[int] = ()
    seeds: int = 3
    count: int | None = None
    nearest: int | None = None
    export: str | None = None
    out: str | None = None
    operator: Collection[str] = ()
    steering: Collection[str] = ()
    weights: Collection[str] = ()
    sampler: Collection[str] = ()
    plan: Collection[str] = ()
    guidance: Collection[float] = ()
    guidance_interval: Collection[tuple[float, float]] = ()
    metrics: Collection[str] = ()
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def folder(self) -> epath.Path:
        """The folder that tables and pictures are written to."""
        return paths.given(self.out, "--out") if self.out is not None else paths.run_folder(self.workdir, "--workdir")

    @property
    def ways(self) -> list[dict[str, str]]:
        """The ways of sampling, {"sampling.key": text} of each; those at scale 1 have no interval of guidance."""
        axes = [
            [
                dict(zip(keys, map(str, value if isinstance(value, tuple) else (value,)), strict=True))
                for value in values
            ]
            for name, keys in AXES.items()
            if (values := getattr(self, name))
        ]
        found = []
        for parts in itertools.product(*axes):
            way = {key: text for part in parts for key, text in part.items()}
            if len(self.guidance) > 1 and float(way["sampling.guidance"]) == 1:
                way = {key: text for key, text in way.items() if key not in AXES["guidance_interval"]}
            if way not in found:
                found.append(way)
        return found

    @property
    def is_sweep(self) -> bool:
        """Whether there is more than one way of sampling."""
        return len(self.ways) > 1

    @contextlib.contextmanager
    def naming_flags(self) -> Iterator[None]:
        """A context in which errors that begin with a key name the argument that gave its value."""
        try:
            yield
        except ValueError as error:
            for name, keys in (AXES | METRICS).items():
                if getattr(self, name) and str(error).startswith(keys):
                    raise ValueError(f"--{name.replace('_', '-')}: {error}") from None
            raise

    def check(self, overrides: Collection[str]) -> None:
        """Raises ValueError for arguments that cannot be, whatever the run. overrides: keys that are changed too."""
        for name, keys in (AXES | METRICS).items():
            both = [key for key in keys if key in overrides]
            if getattr(self, name) and both:
                flag = name.replace("_", "-")
                raise ValueError(f"--config.{both[0]} is given; it must be left out with --{flag}, which says the same")
        if self.guidance_interval and self.guidance and set(self.guidance) == {1.0}:
            raise ValueError("--guidance-interval is given; it must be left out with --guidance=1, which is none")
        if self.export is not None and self.out is not None:
            raise ValueError(f"--out is {self.out!r}; it must be left out with --export, which names the file")
        if self.seeds < 1:
            raise ValueError(f"--seeds is {self.seeds}; it must be at least 1")
        if self.nearest is not None and self.nearest < 0:
            raise ValueError(f"--nearest is {self.nearest}; it must be at least 0")
        minimum = 1 if self.export is not None else MIN_IMAGES
        if self.count is not None and not minimum <= self.count <= MOST_IMAGES:
            raise ValueError(f"--count is {self.count}; it must be at least {minimum}, and at most {MOST_IMAGES}")
        if self.is_sweep and self.nearest is not None:
            raise ValueError(
                f"--nearest is {self.nearest}; it must be left out where several ways of sampling are given"
            )
        if self.evaluations and self.export is not None:
            raise ValueError(f"--export is {self.export!r}; it must be left out with --evaluations")
        if self.is_sweep and self.export is not None:
            raise ValueError(
                f"--export is {self.export!r}; it must be left out where several ways of sampling are given"
            )

    def check_task(self, runs: Collection[Run]) -> None:
        """Raises ValueError for ways of sampling of which only some restore images; runs: those of the ways."""
        if len({run.sampling.steering.measures for run in runs}) > 1:
            raise ValueError(
                f"--operator is {','.join(self.operator)}; it must be measurements alone, or rewards alone, which "
                "nothing is restored by"
            )

    def check_features(self, run: Run, overrides: Collection[str]) -> None:
        """Raises ValueError for weights that are typed of a feature network other than the one that measures."""
        for name in ("inception", "dinov2"):
            if f"evaluation.{name}" in overrides and run.evaluation.features != name:
                raise ValueError(
                    f"evaluation.{name} is {getattr(run.evaluation, name)!r}; it must be left out where "
                    f"evaluation.features is {run.evaluation.features!r}"
                )

    def check_labels(self, runs: Collection[Run], overrides: Collection[str]) -> None:
        """Raises ValueError for labels that are asked for of restorations, which have those of what they restore."""
        for run in runs:
            if run.sampling.steering.measures and "evaluation.labels" in overrides:
                raise ValueError(
                    f"evaluation.labels is {run.evaluation.labels!r}; it must be left out where sampling.steering."
                    f"operator is {run.sampling.steering.operator!r}, as restorations have the labels of what they "
                    "restore"
                )

    def check_likelihood_alone(self, overrides: Mapping[str, str]) -> None:
        """Raises ValueError for what is asked of samples where none is drawn, as bits_per_dim alone is measured."""
        self._check_left_out(OF_SAMPLES, f"where {BITS_PER_DIM} alone is measured, for which nothing is drawn")
        check_read(overrides, KEYS_OF_SAMPLES, f"{BITS_PER_DIM} alone")

    def _check_left_out(self, names: Collection[str], where: str) -> None:
        for name in names:
            if name in self.given:
                raise ValueError(f"--{name.replace('_', '-')} is {self.given[name]}; it must be left out {where}")

    def check_nearest(self, shown: bool) -> None:
        """Raises ValueError for nearest images that cannot be shown; shown: whether samples and others are images."""
        if self.nearest and not shown:
            raise ValueError(
                f"--nearest is {self.nearest}; it must be left out for samples that are no images, or where "
                "evaluation.reference holds none that would be near"
            )

    def check_export(self, run: Run, overrides: Mapping[str, str]) -> None:
        """Raises ValueError if the samples of a run cannot be exported, or for figures, which are not measured then."""
        names = ("metrics", "nearest", *["seeds"] * (self.seeds > 1))
        self._check_left_out(names, "with --export, which measures nothing and writes samples of one noise")
        check_read(overrides, KEYS_OF_FIGURES, "--export")
        if len(self.steps) > 1:
            steps = ",".join(map(str, self.steps))
            raise ValueError(f"--steps is {steps!r}; with --export it must be one step count")
        if not str(self.export).endswith(".npz"):
            raise ValueError(f"--export is {self.export!r}; it must end with .npz")
        if not (self.count or run.evaluation.num_samples):
            raise ValueError("--count: missing; with --export it says how many samples to write")
        if not run.shows_images:
            raise ValueError(f"--export: data.channels is {run.image_shape[-1]}; only 1 or 3 are images")
