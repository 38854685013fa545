"""Shards of pairs (ε, x̂(ε)) of noise and the sample that a trained run makes of it, for rectified flow's reflow.

Liu, Gong, Liu, Flow Straight and Fast (2022), arXiv:2209.03003, trains on such pairs to straighten the flow.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from tim_jax import data
from tim_jax.config import identity
from tim_jax.config.build import build
from tim_jax.config.run import Run
from tim_jax.data.shard_files import EXAMPLE_OVERHEAD, SHARD_OVERHEAD
from tim_jax.runs import shard_job, workdir
from tim_jax.runs.conditions import known_labels
from tim_jax.runs.encoders import open_text_encoder
from tim_jax.runs.encoding.settings import module_identity
from tim_jax.runs.generation import Generator, alpha_sigma, load_weights
from tim_jax.runs.input_pipeline import open_source_and_plan
from tim_jax.runs.labels import repeated
from tim_jax.runs.learned_plan import with_found
from tim_jax.runs.outputs.batches import sampling_record
from tim_jax.runs.restoration import check_samples
from tim_jax.runs.step_grid import known_as
from tim_jax.system import compilation_cache, devices
from tim_jax.transitions.sampling.planning import make_plan

SAMPLED_CAPTIONS = 64  # captions that are looked at to estimate the size of all


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of a run's samples and their noise: a `shard_job.Job`. Pair i is image i of the seed.

    Attributes:
        generator: of the run, on this process's devices.
        weights: parameters of the network, on the generator's mesh.
        depends_on: what of the run the pairs depend on, for the settings.
        count: how many pairs.
        steps: of the sampler.
        seed: of the noise.
        rows_per_shard: pairs in a shard; the last may have fewer.
        source: of captions; None where pairs have labels.
        labels: those that take their turns; None where pairs have captions.
        former: see `shard_job.Job`.
    """

    generator: Generator
    weights: Any
    depends_on: dict[str, Any]
    count: int
    steps: int
    seed: int
    rows_per_shard: int
    source: data.Source | None = None
    labels: np.ndarray | None = None
    former: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    doing = "sampling"
    train_with = "--config.data.paired_noise=True"

    @property
    def run(self) -> Run:
        """The run that samples."""
        return self.generator.run

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """All that the pairs depend on, as JSON has it."""
        own = {"rows": self.count, "steps": self.steps, "rows_per_shard": self.rows_per_shard}
        return json.loads(json.dumps(own | self.depends_on))

    @functools.cached_property
    def counts(self) -> list[int]:
        """Pairs in each shard."""
        return [min(self.count - first, self.rows_per_shard) for first in range(0, self.count, self.rows_per_shard)]

    @property
    def counted_by(self) -> str:
        """--examples."""
        return f"--examples={self.count}"

    @property
    def max_bad_share(self) -> float:
        """The largest share of samples that are not finite."""
        return self.run.inputs.max_bad_share

    @property
    def about(self) -> dict[str, Any]:
        """What about.json says of all pairs."""
        return {
            "num_classes": 0 if self.source else self.run.config.model.num_classes,
            "captions": self.source is not None,
            "latent_channels": self.run.image_shape[-1],
            "moments": False,
            "noise": True,
        }

    @property
    def null(self) -> dict[str, np.ndarray]:
        """The condition of the empty prompt; {} where pairs have labels."""
        return self.generator.texts.null_of_shards if self.generator.texts else {}

    def size_in_bytes(self) -> int:
        """About how many bytes all shards have."""
        pair = EXAMPLE_OVERHEAD + 2 * 4 * math.prod(self.run.image_shape)
        if self.source and self.generator.texts:
            captions = [data.caption_at(self.source, i) for i in range(min(self.count, SAMPLED_CAPTIONS))]
            texts, width = self.generator.texts, self.run.config.data.text_width
            tokens = [min(texts.tokenizer.count(caption), texts.length) for caption in captions]
            pair += np.mean([len(caption.encode()) for caption in captions]) + 2 * width * np.mean(tokens)
        return int(self.count * pair + len(self.counts) * SHARD_OVERHEAD)

    def make(self, shards: Sequence[int], progress: Callable[[], Any]) -> Iterator[tuple[list, list]]:
        """Samples one shard after another: see `shard_job.Job`."""
        for shard in shards:
            numbers = shard * self.rows_per_shard + np.arange(self.counts[shard])
            rows, bad = [], []
            for number, row in zip(numbers.tolist(), self.rows(numbers), strict=True):
                progress()
                if np.isfinite(row["pair"]).all():
                    rows.append(row)
                else:
                    bad.append({"row": number, "identity": f"pair {number}", "reason": "not finite"})
            yield rows, bad

    def rows(self, numbers: np.ndarray) -> Iterator[dict[str, Any]]:
        """The pairs of these consecutive numbers, as `shard_files.pack` takes them.

        The numbers are those of one shard, so that batches are the same whatever other shards are made.
        """
        generator, size = self.generator, self.generator.batch_size
        noise = generator.noise(self.seed, len(numbers), first=int(numbers[0]))
        start = alpha_sigma(self.run, self.run.transport.T_max)[1] * noise
        if self.source:
            conditions: Any = [data.caption_at(self.source, i) for i in numbers.tolist()]
        else:
            labels = np.asarray(self.labels)
            conditions = labels[numbers % len(labels)]
        batches = generator.batches(
            self.weights,
            generator.times(self.steps),
            conditions,
            seed=self.seed,
            start=start,
            numbers=numbers,
        )
        for first, samples in zip(range(0, len(numbers), size), batches, strict=True):
            here = slice(first, first + size)
            pairs = np.moveaxis(np.stack([samples, noise[here]], axis=1), -1, 2)
            for pair, condition in zip(pairs, self._condition_rows(conditions[here]), strict=True):
                yield {"pair": pair} | condition

    def _condition_rows(self, conditions: Sequence[int] | Sequence[str]) -> list[dict[str, Any]]:
        """What rows hold of labels or captions, of which there are at most as many as in a batch."""
        texts = self.generator.texts
        if not texts:
            return [{"label": int(label)} for label in conditions]
        encoded = texts(repeated(np.asarray(conditions), self.generator.batch_size).tolist())
        features, lengths = np.asarray(encoded["text"]), np.asarray(encoded["mask"]).sum(1)
        found = zip(conditions, features, lengths)
        return [{"captions": [caption], "texts": [feature[:length]]} for caption, feature, length in found]


def open_pairs(
    folder: epath.Path, overrides: dict[str, str], *, count: int, steps: int, seed: int, rows_per_shard: int
) -> Pairs:
    """The pairs of a workdir's run, on this process's devices, with all that can be wrong checked.

    Args:
        folder: the workdir.
        overrides: {"section.key": text} of the configuration.
        count: how many pairs.
        steps: of the sampler.
        seed: of the noise.
        rows_per_shard: pairs in a shard.

    Raises:
        ValueError: one line that names what is wrong.
    """
    run = build(workdir.load(folder, overrides), jax.local_devices())
    check_samples(run, "pairs of normal noise and samples")
    if run.transport.augmented_dimensions:
        raise ValueError(
            f"transport.augmented_dimensions is {run.transport.augmented_dimensions}; it must be 0 for pairs, whose "
            "noise is normal"
        )
    cache = compilation_cache.use(run.training.compilation_cache, run.training.compilation_cache_gib)
    texts, source, labels = None, None, None
    depends_on: dict[str, Any] = {}
    if run.config.model.condition == "text":
        texts, (source, _) = open_text_encoder(run), open_source_and_plan(run)
        if not source.captions:
            raise ValueError(
                f"model.condition is 'text'; it must be 'class', as the examples of {source.name} have no captions"
            )
        encoder = module_identity(run.codecs.text_encoder) | {"dtype": run.codecs.dtype}
        depends_on = {"text_encoder": encoder, "source": source.fingerprint()}
    else:
        labels = np.flatnonzero(known_labels(run, folder))
        if len(labels) < run.config.model.num_classes:
            depends_on = {"labels": labels.tolist()}
    weights, step = load_weights(run, folder)
    run = with_found(run, folder, step)
    generator = Generator(run, min(run.config.sampling.batch_size, rows_per_shard, count), texts)
    times = generator.times(steps)
    plan = make_plan(run.transport, times, run.sampling)
    if plan.c.any():
        raise ValueError(
            f"sampling.sampler, sampling.stochasticity are {run.sampling.sampler!r}, {run.sampling.stochasticity}; "
            "they "
            f"must draw no noise on the way, as a pair's sample follows from its own noise alone, and do in {steps} "
            "steps"
        )
    generator.load()
    names = known_as(run, folder, step)
    depends_on |= {"run": identity.of(run.config), "weights": {key: values[0] for key, values in names.items()}}
    former = {f"weights.{key}": values[-1] for key, values in names.items()}
    if source is not None:
        former["source"] = source.former_fingerprint()
    found: dict[str, Any] = {"times": times.tolist()} if run.sampling.optimal_times else {}
    if run.sampling.plan == "learned":
        found |= {"plan": [part.tolist() for part in plan.arrays().values()]}
    depends_on |= {"sampling": sampling_record(run, step, seed) | found}
    devices.announce()
    shard_job.print_once(cache)
    return Pairs(generator, weights, depends_on, count, steps, seed, rows_per_shard, source, labels, former)
