"""How good a run's samples are: what python -m tim_jax.evaluate and evaluation while training share.

All processes do the same: each reads and computes its devices' share of the images, and features come back whole.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from tqdm import tqdm

from tim_jax.config.run import Run
from tim_jax.evaluation import FEATURES, anystep, metrics, published, references, summaries, yardstick
from tim_jax.evaluation.features import WEIGHTS, Features
from tim_jax.evaluation.references import Reference
from tim_jax.evaluation.settings import MIN_IMAGES
from tim_jax.evaluation.yardstick import HELD_OUT, Yardstick
from tim_jax.runs.generation import Generator, cycle_labels, open_generator, prompts_of
from tim_jax.runs.input_pipeline import open_rows
from tim_jax.runs.reference_data import ImageSet, of_data, of_file
from tim_jax.training import sharding
from tim_jax.training.sharding import on_mesh

SHOWN = 20  # samples of a step count in pictures
Stream = Iterator[tuple[dict[str, np.ndarray], np.ndarray]]  # ({output: (n, d)}, numbers of the images (n,))


class Extractor:
    """Features of images, in batches of one size whose rows lie over the devices of a run's mesh."""

    def __init__(self, run: Run, features: Features):
        self.mesh, self.shape = run.mesh, run.image_shape
        shards = sharding.batch_shards(run.mesh)
        self.batch_size = -(-run.evaluation.batch_size // shards) * shards
        whole = sharding.replicated(run.mesh)
        self._variables = jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, whole, lambda index: x[index]), features.variables
        )
        self._apply = jax.jit(features.apply, out_shardings=whole)

    def mine(self, rows: np.ndarray) -> np.ndarray:
        """Of the rows of a whole batch those of this process's devices."""
        parts = np.split(rows, sharding.batch_shards(self.mesh))
        return np.concatenate([parts[i] for i in sharding.shards_here(self.mesh)])

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """{output: (batch_size, d)} of a whole batch; images: this process's rows of it."""
        batch = sharding.put_batch(self.mesh, {"x": np.ascontiguousarray(images, np.float32)})
        with on_mesh(self.mesh):
            return jax.device_get(self._apply(self._variables, batch["x"]))

    def samples(self, batches: Iterator[np.ndarray]) -> Stream:
        """Features of images in batches of any size up to batch_size, known to all processes."""
        first = 0
        for images in batches:
            count = len(images)
            rows = np.resize(images, (self.batch_size, *images.shape[1:]))
            yield {name: x[:count] for name, x in self(self.mine(rows)).items()}, np.arange(first, first + count)
            first += count

    def real(self, part: ImageSet, title: str) -> Stream:
        """Features of a part's images, each process reading its own."""
        quiet = jax.process_index() > 0
        for first in tqdm(range(0, part.count, self.batch_size), desc=title, unit="batch", disable=quiet, leave=False):
            indices = np.arange(first, first + self.batch_size)
            inside = indices < part.count
            images, found = part.read(self.mine(np.minimum(indices, part.count - 1)))
            outputs = self(images)
            found = sharding.put_batch(self.mesh, {"x": found})["x"]
            found = np.asarray(jax.jit(lambda x: x, out_shardings=sharding.replicated(self.mesh))(found)) & inside
            yield {name: x[found] for name, x in outputs.items()}, indices[found]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """An evaluation that has been checked. features: what images are compared by.

    parts: real images to compare samples with, by the end of the figures' names. stored: in place of the training part.
    neighbours: images among which those nearest to samples are looked for, None if there are none.
    """

    run: Run
    features: Features
    metrics: Mapping[str, metrics.Metric]
    parts: Mapping[str, ImageSet]
    stored: Reference | None = None
    neighbours: ImageSet | None = None

    @functools.cached_property
    def extractor(self) -> Extractor:
        return Extractor(self.run, self.features)

    def training(self) -> Iterator[np.ndarray]:
        """The images (n, h, w, C) among which nearest ones are looked for, in batches, with progress."""
        size, part = self.run.evaluation.batch_size, self.neighbours
        for first in tqdm(range(0, part.count, size), desc="nearest images", unit="batch", leave=False):
            images, found = part.read(np.arange(first, min(first + size, part.count)))
            if found.any():
                yield images[found]

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Of the reference that stands for the training part."""
        return dict(self.stored.fingerprint if self.stored else self.parts[""].fingerprint)

    @functools.cached_property
    def yardstick(self) -> Yardstick:
        """Reads references from where they were stored, or computes and stores them."""
        found = {end: self._reference(part, end) for end, part in self.parts.items() if end or not self.stored}
        return Yardstick(
            self.metrics, ({"": self.stored} if self.stored else {}) | found, self.run.evaluation.max_images
        )

    def _reference(self, part: ImageSet, end: str) -> Reference:
        if not part.count:
            return Reference(part.fingerprint, part.given)
        needs = yardstick.needs_of(self.metrics, reference=True)
        path = epath.Path(self.run.inputs.directory).expanduser() / references.name_of(part.fingerprint)
        found = references.cached(path, part.fingerprint, needs)
        if not _everywhere(found is not None):
            stream = self.extractor.real(part, "held-out part" if end else "reference")
            summary = yardstick.gather(
                stream, needs, summaries.choose_images(part.count, self.run.evaluation.max_images)
            )
            found = Reference(part.fingerprint, summary | part.given)
            references.write(path, found)
        return found

    def figures(self, batches: Iterator[np.ndarray], count: int) -> dict[str, float]:
        """The figures of `count` samples that come in batches. Raises ValueError if some are not finite."""
        return self.yardstick.figures(self.extractor.samples(_finite(batches)), count)


def _everywhere(here: bool) -> bool:
    """Whether all processes say so."""
    if jax.process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(np.array(here, np.int32)).all())


def _finite(batches):
    for images in batches:
        broken = len(images) - int(np.isfinite(images).reshape(len(images), -1).all(axis=1).sum())
        if broken:
            raise ValueError(f"samples: {broken} of {len(images)} in a batch are not finite")
        yield images


def plan(run: Run) -> Measurement:
    """The evaluation that a run's configuration asks for, all that can be wrong with it found. Raises ValueError."""
    settings = run.evaluation
    weights = settings.inception or str(epath.Path(run.inputs.directory).expanduser() / WEIGHTS)
    features = FEATURES[settings.features](weights)
    chosen = metrics.chosen(features.outputs, settings.metrics)
    parts, stored, neighbours = {}, None, None
    if not settings.reference:
        parts[""] = neighbours = of_data(run, features, run.data.split)
    elif _is_stored(reference := str(epath.Path(settings.reference).expanduser())):
        stored = references.read(reference)
        neighbours = of_data(run, features, run.data.split)
        references.check_same(stored.fingerprint, neighbours.fingerprint, f"evaluation.reference ({reference})")
        chosen = _served(chosen, stored.summary.keys(), run)
    else:
        parts[""] = neighbours = of_file(run, features, reference)
        if not neighbours.count:
            neighbours, chosen = None, _served(chosen, neighbours.given.keys(), run)
    if settings.held_out:
        parts[HELD_OUT] = of_data(run, features, settings.held_out)
    for end, part in parts.items():
        if part.count and part.count < MIN_IMAGES:
            name = "evaluation.held_out" if end else "the training part"
            raise ValueError(f"{name}: has {part.count} images; at least {MIN_IMAGES} are needed to measure by")
    return Measurement(run, features, chosen, parts, stored, neighbours)


def _is_stored(path: str) -> bool:
    """Whether a file of a reference is one of this project's own. Raises ValueError if it cannot be read."""
    if not epath.Path(path).exists():
        raise ValueError(f"evaluation.reference is {path!r}; there is no such file")
    return references.FINGERPRINT in published.names(path)


def _served(chosen, have, run):
    lacking = [name for name, metric in chosen.items() if not metric.reference_free and metric.need not in have]
    if set(lacking) & set(run.evaluation.metrics) or len(lacking) == len(chosen):
        raise ValueError(
            f"evaluation.reference is {run.evaluation.reference!r}; it lacks what {', '.join(lacking)} would need"
        )
    return {name: metric for name, metric in chosen.items() if name not in lacking}


def while_training(run: Run, measurement: Measurement) -> Callable[[Any], dict[str, float]]:
    """state → {"evaluation/WEIGHTS/STEPS/NAME": figure}, for the weights and step counts that `evaluation` names.

    Nothing that training goes on from depends on it. Samples that are not finite are told, and give no figures.
    """
    settings = run.evaluation
    count = settings.periodic.num_samples or count_of(measurement)
    _ = measurement.yardstick  # before training begins
    generator = generator_of(run, count)
    generator.load()
    asked = asked_of(run, count)

    def measure(state: Any) -> dict[str, float]:
        found = {}
        for name in settings.periodic.emas or (run.sampling.ema,):
            weights = run.weights(state, name)
            for steps in settings.periodic.steps:
                try:
                    figures = measurement.figures(generator.images(weights, generator.times(steps), asked), count)
                except ValueError as error:
                    print(f"\nwarning: evaluation of {name} at {steps} steps: {error}", file=sys.stderr, flush=True)
                    continue
                found |= {f"evaluation/{name}/{steps}/{figure}": value for figure, value in figures.items()}
        return found

    return measure


def any_step_table(
    measurement: Measurement,
    generator: Generator,
    weights: Any,
    nfe: Mapping[int, int],
    seeds: Sequence[int],
    count: int,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[dict[str, Any], dict[int, np.ndarray]]:
    """The any-step table of some weights, and of every number of steps the first images of the first seed.

    generator: see `generator_of`. nfe: {steps: network evaluations per image}. Raises ValueError for samples that are
    not finite.
    """
    run, most = measurement.run, max(nfe)
    yardstick = measurement.yardstick
    asked = asked_of(run, count)
    for steps in {min(64, most), most}:  # compilation is not the sampler's time
        generator(weights, steps, seeds[0], asked[: generator.batch_size])
    shown = {}

    def figures(steps: int, seed: int) -> tuple[dict[str, float], float]:
        seconds = 0.0

        def drawn():
            nonlocal seconds
            began = time.perf_counter()
            for images in generator.images(weights, generator.times(steps), asked, seed):
                seconds += time.perf_counter() - began
                shown.setdefault(steps, images[:SHOWN])
                yield images
                began = time.perf_counter()

        return measurement.figures(drawn(), count), seconds

    floor, reference = yardstick.floor(seeds), measurement.fingerprint
    return anystep.any_step_table(figures, nfe, seeds, count, floor, nfe.get, progress, reference), shown


def generator_of(run: Run, count: int) -> Generator:
    """What draws `count` images to be measured, in batches of `evaluation.batch_size`. Raises ValueError."""
    return open_generator(run, min(count, run.evaluation.batch_size))


def asked_of(run: Run, count: int) -> np.ndarray | list[str]:
    """(count,): every label in turn, or the captions that are trained on."""
    if run.config.model.condition == "class":
        return cycle_labels(run.config.model.num_classes, count)
    return prompts_of(open_rows(run)[0], count)


def count_of(measurement: Measurement) -> int:
    """Samples per step count and seed: those that `evaluation.num_samples` says, or as many as the reference has
    images."""
    images = measurement.fingerprint["images"]
    count = measurement.run.evaluation.num_samples or images
    if not count:
        raise ValueError(
            "evaluation.num_samples is 0; it must be given, as evaluation.reference holds no images to count"
        )
    return count
