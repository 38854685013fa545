"""How good a run's samples are: what python -m tim_jax.evaluate and evaluation while training share."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from tim_jax.config.run import Run
from tim_jax.evaluation import (
    FEATURES,
    duplicates,
    metrics,
    pictures,
    published,
    references,
    restored,
    summaries,
    yardstick,
)
from tim_jax.evaluation.features import PLACES, Features
from tim_jax.evaluation.metrics import BITS_PER_DIM
from tim_jax.evaluation.protocol import AS_DRAWN, EIGHT_BITS, Protocol
from tim_jax.evaluation.references import Reference
from tim_jax.evaluation.settings import MIN_IMAGES
from tim_jax.evaluation.yardstick import HELD_OUT, Yardstick
from tim_jax.runs.conditions import sample_conditions
from tim_jax.runs.extractor import Extractor
from tim_jax.runs.generation import Generator, open_generator
from tim_jax.runs.reference_data import ImageSet, held_out_images, reference_batch, trained_images, training_images
from tim_jax.runs.restoration import Truths, open_truths, scored
from tim_jax.system import cluster, paths
from tim_jax.system.progress import Activity, Bar
from tim_jax.transitions import SAMPLERS


@dataclasses.dataclass(frozen=True)
class Measurement:
    """An evaluation whose settings have been checked; `open_measurement` makes one.

    Attributes:
        run: whose samples are measured.
        features: what images are compared by.
        metrics: what is measured, by name.
        image_sets: real images to compare samples with, by the suffix of the figures' names: "" for the training part,
            HELD_OUT for the held-out part.
        stored: a stored reference in place of the images of the training part, or None.
        neighbours: images among which those nearest to samples are looked for; None if there are none.
    """

    run: Run
    features: Features
    metrics: Mapping[str, metrics.Metric]
    image_sets: Mapping[str, ImageSet]
    stored: Reference | None = None
    neighbours: ImageSet | None = None

    @functools.cached_property
    def truths(self) -> Truths | None:
        """What a coupled or steered run restores, which samples are compared with one by one."""
        return open_truths(self.run)

    @functools.cached_property
    def extractor(self) -> Extractor:
        """Computes the features."""
        return Extractor(self.run, self.features)

    def neighbour_batches(self) -> Iterator[np.ndarray]:
        """The images (n, h, w, C) among which nearest ones are looked for, in batches, with a progress bar."""
        images, size = self.neighbours, self.run.evaluation.batch_size
        if images is None:
            return
        for first in Bar(range(0, images.count, size), desc="nearest images", unit="batch", leave=False):
            batch, found = images.read(np.arange(first, min(first + size, images.count)))
            if found.any():
                yield batch[found]

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Of the reference that stands for the training part."""
        return dict(self.stored.fingerprint if self.stored else self.image_sets[""].fingerprint)

    @functools.cached_property
    def yardstick(self) -> Yardstick:
        """The references, read from where they were stored, or computed and stored now."""
        found = {"": self.stored} if self.stored else {}
        for suffix, images in self.image_sets.items():
            if suffix or not self.stored:
                found[suffix] = self._reference(images, suffix)
        return Yardstick(self.metrics, found, self.run.evaluation.max_images)

    def _reference(self, images: ImageSet, suffix: str) -> Reference:
        if not images.count:
            return Reference(images.fingerprint, images.given)
        needs = (*yardstick.needs_of(self.metrics, reference=True), duplicates.DIGESTS)
        path = epath.Path(self.run.inputs.directory).expanduser() / references.name_of(images.fingerprint)
        found = references.cached(path, images.fingerprint, needs)
        if not all(cluster.agreed([found is not None])):
            stream = self.extractor.real(images, "held-out part" if suffix else "reference")
            summary = yardstick.gather(stream, needs, images.count, self.run.evaluation.max_images)
            found = Reference(images.fingerprint, summary | images.given)
            references.keep(path, found)
        assert found is not None, "read on all processes, or computed"
        return found

    def real_images(self, count: int, seeds: Sequence[int]) -> dict[str, Any]:
        """What a table says of the real images that samples are compared with, besides the floor of halves.

        Args:
            count: samples that are measured.
            seeds: of random subsets.

        Returns:
            {"floor_at_count": what as many perfect samples would score, see `Yardstick.floor_at`, "duplicates": see
            `duplicates.count`}.
        """
        with Activity("estimating what perfect samples would score", disable=jax.process_index() > 0):
            floor = self.yardstick.floor_at(count, seeds)
        return {"floor_at_count": floor, "duplicates": self.duplicates}

    @functools.cached_property
    def duplicates(self) -> dict[str, int]:
        """Images that are there more than once, see `duplicates.count`, with a warning of those that should not be."""
        known = {suffix: of.summary for suffix, of in self.yardstick.references.items()}
        if HELD_OUT in known and (trained := trained_images(self.run, self.features)) is not None:
            known[""] = self._reference(trained, "").summary
        found = duplicates.count(known)
        if line := duplicates.warning(found):
            logging.warning("evaluation.held_out is %r: %s", self.run.evaluation.held_out, line)
        return found

    def figures(self, batches: Iterator[np.ndarray], count: int) -> dict[str, float]:
        """Measures samples as they are written: images clipped and rounded to 8 bits, latents as they are.

        Args:
            batches: images (n, H, W, c) in about [−1, 1], or latents that nothing decodes, at most
                `evaluation.batch_size` at a time.
            count: how many they are together.

        Returns:
            {NAME, NAME_held_out: figure}, and for restorations the mean PSNR.

        Raises:
            ValueError: if some are not finite.
        """
        batches = _finite(batches)
        if self.run.shows_images:
            batches = map(pictures.as_written, batches)
        if not self.truths:
            return self.yardstick.figures(self.extractor.samples(batches), count)
        ratios: list[float] = []
        figures = self.yardstick.figures(self.extractor.samples(scored(batches, self.truths, ratios)), count)
        return figures | {restored.NAME: float(np.mean(ratios))}

    def protocol(self, run: Run, count: int, seeds: Sequence[int]) -> Protocol:
        """What figures of `count` samples of each seed, drawn as that run samples, are measured by."""
        held_out = self.image_sets.get(HELD_OUT)
        parts = self.fingerprint, held_out.fingerprint if held_out else None
        return protocol_of(run, count, seeds, *parts)

    def sample_count(self) -> int:
        """Samples per step count and seed: `evaluation.num_samples`, or as many as the reference has images.

        Raises ValueError if neither says.
        """
        count = self.run.evaluation.num_samples or self.fingerprint["images"]
        if not count:
            raise ValueError(
                "evaluation.num_samples is 0; it must be given, as evaluation.reference holds no images to count"
            )
        return count


def protocol_of(
    run: Run,
    count: int,
    seeds: Sequence[int],
    reference: Mapping[str, Any] | None = None,
    held_out: Mapping[str, Any] | None = None,
) -> Protocol:
    """The protocol of samples: the one place where it is made.

    Args:
        run: whose `sampling` says how they are drawn, and whose `evaluation` how they are measured.
        count: how many of each seed.
        seeds: of the noise.
        reference: fingerprint of what they are compared with; None where they are only written.
        held_out: fingerprint of the held-out part, or None.
    """
    sampling = run.sampling
    grid = sampling.grid
    if grid == "optimal":
        grid = f"optimal {_digest({steps: list(times) for steps, times in sorted(sampling.optimal_times.items())})}"
    elif grid == "shifted":
        grid = f"shifted by {sampling.shift:g}"
    plan = {}
    if sampling.plan == "learned":
        known = sampling.learned.plans if sampling.learned else {}
        parts = {steps: [part.tolist() for part in one.arrays().values()] for steps, one in sorted(known.items())}
        plan = {"plan": f"learned {_digest(parts)}"}
    if sampling.refines:
        plan |= {"refiner": run.refiner.source.fingerprint if run.refiner else sampling.refiner}
    guided = sampling.guidance != 1
    labels = run.evaluation.labels if run.config.model.condition == "class" else "captions"
    if (truths := open_truths(run)) is not None:
        labels, plan = "truths", plan | {"restores": f"{truths.count} images of {truths.part}, shuffled"}
    if sampling.steering.active:
        plan |= {f"steering.{key}": value for key, value in dataclasses.asdict(sampling.steering).items()}
    others = ("parallel", "tolerance") * bool(sampling.parallel) + ("int8",) * sampling.int8
    others += ("draw_steps",) * sampling.transition_head
    ends = "excluded" if sampling.exclusive_ends and not sampling.guidance_input else "included"
    return Protocol(
        reference=reference,
        held_out=held_out,
        labels=labels,
        levels=EIGHT_BITS if run.shows_images else AS_DRAWN,
        samples=count,
        seeds=tuple(seeds),
        weights=sampling.ema,
        sampler=sampling.sampler,
        grid=grid,
        guidance=sampling.guidance,
        guidance_interval=(sampling.guidance_low, sampling.guidance_high) if guided else None,
        guidance_channels=sampling.guidance_channels if guided else 0,
        guidance_ends=ends if guided else None,
        guidance_input=sampling.guidance_input,
        stochasticity=sampling.stochasticity,
        stochastic=sampling.stochastic if sampling.stochasticity else None,
        sampler_settings={key: getattr(sampling, key) for key in (*SAMPLERS[sampling.sampler].keys, *others)} | plan,
    )


def _digest(found: Any) -> str:
    """What tells grids or plans that were found from others."""
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def _finite(batches: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    for images in batches:
        broken = len(images) - int(np.isfinite(images).reshape(len(images), -1).all(axis=1).sum())
        if broken:
            raise ValueError(f"samples: {broken} of {len(images)} in a batch are not finite")
        yield images


def open_measurement(run: Run) -> Measurement:
    """The evaluation that a run's configuration asks for, with all that can be wrong checked. Raises ValueError."""
    settings = run.evaluation
    if BITS_PER_DIM in settings.metrics:
        raise ValueError(
            f"evaluation.metrics is {settings.metrics}; it must be without {BITS_PER_DIM} but for python -m "
            "tim_jax.evaluate, as samples do not tell it"
        )
    weights = {"inception": settings.inception, "dinov2": settings.dinov2}.get(settings.features, "")
    if not weights and settings.features in PLACES:
        weights = str(epath.Path(run.inputs.directory).expanduser() / PLACES[settings.features])
    features = FEATURES[settings.features](weights)
    chosen = metrics.chosen(features.outputs, settings.metrics)
    image_sets: dict[str, ImageSet] = {}
    stored: Reference | None = None
    neighbours: ImageSet | None = None
    if not settings.reference:
        image_sets[""] = neighbours = training_images(run, features)
    elif _is_stored(reference := str(paths.given(settings.reference, "evaluation.reference"))):
        stored = references.read(reference)
        neighbours = training_images(run, features)
        references.check_same(stored.fingerprint, neighbours.fingerprint, f"evaluation.reference ({reference})")
        chosen = _measurable(chosen, stored.summary.keys(), run)
    else:
        image_sets[""] = neighbours = reference_batch(run, features, reference)
        if not neighbours.count:
            chosen = _measurable(chosen, neighbours.given.keys(), run)
            neighbours = None
    if (held_out := held_out_images(run, features)) is not None:
        image_sets[HELD_OUT] = held_out
    for suffix, images in image_sets.items():
        if images.count and images.count < MIN_IMAGES:
            name = "evaluation.held_out" if suffix else "the training part"
            raise ValueError(f"{name}: has {images.count} images; at least {MIN_IMAGES} are needed to measure by")
    return Measurement(run, features, chosen, image_sets, stored, neighbours)


def _is_stored(path: str) -> bool:
    """Whether a file of a reference is one of this project's own. Raises ValueError if it cannot be read."""
    if not epath.Path(path).exists():
        raise ValueError(f"evaluation.reference is {path!r}; it must be a file, and there is none")
    return references.FINGERPRINT in published.names(path)


def _measurable(
    chosen: Mapping[str, metrics.Metric], have: Collection[summaries.Need], run: Run
) -> dict[str, metrics.Metric]:
    """The metrics whose needs a reference has. Raises ValueError if the configuration names one of the others."""
    lacking = [name for name, metric in chosen.items() if not metric.reference_free and metric.need not in have]
    if set(lacking) & set(run.evaluation.metrics) or len(lacking) == len(chosen):
        raise ValueError(
            f"evaluation.reference is {run.evaluation.reference!r}; it must have what {', '.join(lacking)} would need"
        )
    return {name: metric for name, metric in chosen.items() if name not in lacking}


def measure_while_training(run: Run, measurement: Measurement) -> Callable[[Any], dict[str, float]]:
    """Prepares what `evaluation.periodic` asks for.

    Returns:
        A function of the training state that gives {"evaluation/EMA/STEPS/NAME": figure} for the weights and step
        counts that the configuration names. Training does not depend on it. Samples that are not finite give no
        figures, and a warning.
    """
    settings = run.evaluation
    count = settings.periodic.num_samples or measurement.sample_count()
    _ = measurement.duplicates  # before training begins: references are made, and duplicates warned of
    generator = measurement_generator(run, count)
    generator.load()
    conditions = sample_conditions(run, count)

    def measure(state: Any) -> dict[str, float]:
        found: dict[str, float] = {}
        for name in settings.periodic.emas or (run.sampling.ema,):
            weights = run.weights(state, name)
            for steps in settings.periodic.steps:
                images = generator.images(weights, generator.times(steps), conditions)
                try:
                    figures = measurement.figures(images, count)
                except ValueError as error:
                    logging.warning("evaluation of %s at %d steps: %s", name, steps, error)
                    continue
                found |= {f"evaluation/{name}/{steps}/{figure}": value for figure, value in figures.items()}
        return found

    return measure


def periodic_protocols(measurement: Measurement) -> list[dict[str, Any]]:
    """The protocols of evaluations while training as JSON holds them, one for each of the weights."""
    run = measurement.run
    count = run.evaluation.periodic.num_samples or measurement.sample_count()
    names = run.evaluation.periodic.emas or (run.sampling.ema,)
    samplings = [dataclasses.replace(run.sampling, ema=name) for name in names]
    runs = [dataclasses.replace(measurement.run, sampling=sampling) for sampling in samplings]
    return [measurement.protocol(run, count, [0]).record() for run in runs]


def measurement_generator(run: Run, count: int) -> Generator:
    """Draws `count` images to be measured, in batches of `evaluation.batch_size`. Raises ValueError."""
    return open_generator(run, min(count, run.evaluation.batch_size))
