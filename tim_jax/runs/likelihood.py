"""Bits per dimension of a run's data (`transitions/likelihood.py`): the job of evaluate --metrics=bits_per_dim."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tim_jax.config.objective import are_images
from tim_jax.config.run import Run
from tim_jax.evaluation import likelihood, pictures
from tim_jax.evaluation.metrics import BITS_PER_DIM
from tim_jax.runs.diagnosis import check_predicts, condition
from tim_jax.runs.input_pipeline import one_shape, open_held_out
from tim_jax.runs.labels import repeated
from tim_jax.runs.reference_data import labelled_reader
from tim_jax.runs.restoration import check_none
from tim_jax.system.progress import Bar
from tim_jax.training import sharding
from tim_jax.training.sharding import on_mesh
from tim_jax.transitions.likelihood import bits_per_dimension, dequantise, log_likelihood
from tim_jax.transitions.sampling.noise import image_keys


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """What is about to be measured; all that the user can have got wrong has been checked.

    Attributes:
        run: whose network gives the density, in float32 and without guidance.
        parts: by name, images (n, h, w, C) of 256 levels in [−1, 1] and their labels (n,).
    """

    run: Run
    parts: Mapping[str, tuple[np.ndarray, np.ndarray]]

    def measure(self, weights: Any, step: int, seeds: Sequence[int]) -> dict[str, Any]:
        """Measures all parts.

        Args:
            weights: parameters of the network.
            step: of training.
            seeds: of dequantisation and probes.

        Returns:
            What `evaluation.likelihood.write` takes.

        Raises:
            ValueError: for figures that are not finite.
        """
        settings, parts = self.run.evaluation.likelihood, {}
        for name, (images, labels) in self.parts.items():
            bits = np.stack([self.bits(weights, images, labels, seed, name) for seed in seeds])
            if not np.isfinite(bits).all():
                raise ValueError(f"bits per dimension of {np.isnan(bits).sum()} images of {name!r} are not finite")
            parts[name] = likelihood.summary(bits)
        line = likelihood.how(settings.steps, settings.probes, seeds, self.run.sampling.ema, step)
        return {"parts": parts, "line": line, "step": step, "settings": dataclasses.asdict(settings)}

    def bits(self, weights: Any, images: np.ndarray, labels: np.ndarray, seed: int, name: str = "") -> np.ndarray:
        """Bits per dimension (n,) of images; image i has the noise and the probes of number i of the seed."""
        shards, found = sharding.batch_shards(self.run.mesh), []
        size = -(-min(len(images), self.run.evaluation.batch_size) // shards) * shards
        numbers = np.arange(len(images), dtype=np.uint32)
        firsts = range(0, len(images), size)
        for first in Bar(firsts, desc=name, unit="batch", disable=jax.process_index() > 0, leave=False):
            some = (repeated(each[first:], size) for each in (images, labels, numbers))
            with on_mesh(self.run.mesh):
                found.append(np.asarray(self._bits(weights, np.uint32(seed), *some)))
        return np.concatenate(found)[: len(images)]

    @functools.cached_property
    def _bits(self) -> Any:
        run, settings = self.run, self.run.evaluation.likelihood
        net = run.trainer.step.nets["float32"]

        def bits(weights: Any, seed: jax.Array, images: jax.Array, labels: jax.Array, numbers: jax.Array) -> jax.Array:
            keys = image_keys(seed, numbers)
            x, given = dequantise(images, keys), condition(run, labels)
            log_p = log_likelihood(net(weights), run.transport, x, given, keys, settings.steps, settings.probes)
            return bits_per_dimension(log_p, math.prod(run.image_shape))

        return jax.jit(bits, out_shardings=sharding.replicated(run.mesh))


def open_likelihood(run: Run) -> Likelihood:
    """The likelihood that `evaluation.likelihood` asks for, of the training part and of the part that is held out.

    Raises ValueError, in one line, for a run whose examples are no images or that has no density of them.
    """
    check_none(run, "bits per dimension")
    check_predicts(run)
    if not are_images(run.config) or run.config.model.condition != "class":
        raise ValueError(
            f"evaluation.metrics is {run.evaluation.metrics}; it must be without {BITS_PER_DIM} for a run on "
            "latents, or conditioned on text"
        )
    parts = {"training part": (run.data.split, *one_shape(run, run.data.split))}
    if (held_out := open_held_out(run)) is not None:
        parts["held out"] = held_out
    return Likelihood(run, {name: _some(run, *part[1:]) for name, part in parts.items()})


def _some(run: Run, source: Any, fit: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images of a part with their labels, as many as are asked for, drawn always in the same way."""
    count = run.evaluation.likelihood.num_images or len(source)
    numbers = np.random.default_rng(0).permutation(len(source))[:count]
    images, labels, found = labelled_reader(run, source, fit)(numbers)
    if not found.any():
        raise ValueError(f"{source.name}: none of {len(numbers)} images could be read")
    return pictures.as_written(images[found]), labels[found]
