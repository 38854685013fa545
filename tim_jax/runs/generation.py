"""Images from a trained run: what sampling, evaluation and the pictures of training share."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax import data
from tim_jax.config.run import Run
from tim_jax.runs.encoders import Decoder, Pixels, Texts, decoder_of, texts_of
from tim_jax.training import checkpoints, sharding, warm_start
from tim_jax.training.sharding import on_mesh
from tim_jax.transitions.sampling.plans import host_transport
from tim_jax.transitions.sampling.sampler import image_keys, make_plan, padded, sample, start_noise, time_grid

Decode = Pixels | Decoder


def load_weights(run: Run, workdir) -> tuple[Any, int]:
    """The weights that `sampling.ema` names, on the run's mesh, and the step, from the latest good checkpoint.

    Only these are restored of it, once the checksums of all its files are right. Raises ValueError if there is no
    checkpoint.
    """
    none = ValueError(f"--workdir={workdir}: has no checkpoint yet")
    if not (workdir / "checkpoints").exists():
        raise none
    manager = checkpoints.open_manager(workdir, run.checkpoint.keep, run.checkpoint.every, read_only=True)
    step, damaged = checkpoints.latest_good(manager)
    if step is None:
        raise none
    for later, reason in damaged.items():
        print(f"warning: checkpoint of step {later} not used: {reason}", file=sys.stderr)
    manager.close()
    saved = warm_start.Saved(manager.directory, step)
    return warm_start.read_network(saved, run.sampling.ema, run.weights(run.trainer.abstract)), step


def check_by_class(run: Run, workdir) -> None:
    """Raises ValueError for a run that is conditioned on text, where only labels will do."""
    if run.config.model.condition != "class":
        raise ValueError(f"--workdir={workdir}: model.condition is {run.config.model.condition!r}; it must be 'class'")


class Generator:
    """Samples with given weights; image i of a seed is the same whatever the batch and the mesh.

    What it gives are rows, which `decode` turns into images.
    What is asked for are labels, or prompts, where the run has `texts` to read them by. One program is compiled for
    each size, whatever the number of steps (to PADDED evaluations; others for more).
    """

    def __init__(self, run: Run, batch_size: int, texts: Texts | None = None, decode: Decode = Pixels()):
        shards = sharding.batch_shards(run.mesh)
        self.run, self.batch_size = run, -(-batch_size // shards) * shards
        self.texts, self.decode = texts, decode
        # Whole on every device, so that every process has all images.
        whole = sharding.replicated(run.mesh)
        self._sample = jax.jit(self._batch, static_argnums=(8, 9), out_shardings=whole)
        self._noise = jax.jit(start_noise_of, static_argnums=2, out_shardings=whole)

    def load(self) -> None:
        """Reads text encoder and autoencoder, which otherwise the first batch does. Raises ValueError."""
        if self.texts:
            self.texts.part  # noqa: B018
        self.decode.load()

    def __call__(
        self,
        weights: Any,
        steps: int,
        seed: int,
        asked: Sequence[int] | Sequence[str],
        size: tuple[int, int] | None = None,
        trajectory: bool = False,
    ) -> np.ndarray:
        """Rows (n, h, w, C) for n labels or prompts, or trajectories (steps + 1, n, h, w, C).

        size: (h, w), multiples of the patch; by default `data.height` and `width`.
        """
        return self.along(weights, self.times(steps), asked, seed, size=size, trajectory=trajectory)

    def times(self, steps: int, start: float | None = None) -> np.ndarray:
        """(steps + 1,) times on the way of `sampling` down from start (T_max by default); reversed, the way up."""
        return time_grid(self.run.transport, steps, self.run.sampling, start)

    def noise(self, seed: int, count: int, size: tuple[int, int] | None = None, first: int = 0) -> np.ndarray:
        """(count, h, w, C) standard normal noise, from which rows of that seed, from number `first` on, start, times σ
        at T_max."""
        shape, numbers = (*(size or self.run.image_shape[:2]), self.run.image_shape[-1]), first + np.arange(count)
        return np.asarray(self._noise(np.uint32(seed), numbers.astype(np.uint32), shape))

    def noised(self, images: np.ndarray, time: float, seed: int) -> np.ndarray:
        """Images (n, h, w, C) as states x_t = α x + σ ε at a time, ε = noise(seed, n)."""
        alpha, sigma = mixture(self.run, time)
        return alpha * images + sigma * self.noise(seed, len(images), images.shape[1:3])

    def along(self, *given: Any, **more: Any) -> np.ndarray:
        """States (n, h, w, C) at the last of `times`, or at all, (len(times), n, h, w, C); arguments: see `batches`."""
        return np.concatenate(list(self.batches(*given, **more)), axis=-4)

    def batches(
        self,
        weights: Any,
        times: np.ndarray,
        asked: Sequence[int] | Sequence[str],
        seed: int = 0,
        x: np.ndarray | None = None,
        size: tuple[int, int] | None = None,
        trajectory: bool = False,
        numbers: np.ndarray | None = None,
    ) -> Iterator[np.ndarray]:
        """The states of at most `batch_size` rows at a time, drawn when they are asked for.

        times: falling, to sample, or growing, to bring images to noise. asked: n labels or prompts. x: (n, h, w, C),
        the states at the first; by default σ ε at T_max, ε = noise(seed, n, size). trajectory: states at all times.
        numbers: (n,), which images of the seed these are; by default 0, 1, … n − 1.
        """
        plan = make_plan(self.run.transport, times, self.run.sampling)
        evaluations, taken = len(plan.t), np.int32(len(plan.t))
        plan = plan if trajectory else padded(plan)
        size, asked = tuple(size or self.run.image_shape[:2]), np.asarray(asked)
        numbers = np.arange(len(asked)) if numbers is None else np.asarray(numbers)
        for first in range(0, len(asked), self.batch_size):
            indices = self._rows(cycled(numbers[first:].astype(np.uint32), self.batch_size))
            condition, null = self._conditions(cycled(asked[first:], self.batch_size))
            states = None if x is None else self._rows(cycled(np.asarray(x[first:], np.float32), self.batch_size))
            with on_mesh(self.run.mesh):
                images = self._sample(
                    weights, plan, taken, np.uint32(seed), indices, condition, null, states, size, trajectory
                )
            images, count = np.asarray(images), len(asked) - first
            yield images[:: evaluations // (len(times) - 1), :count] if trajectory else images[:count]

    def images(self, *given: Any, **more: Any) -> Iterator[np.ndarray]:
        """`batches`, decoded: images (n, H, W, c) in about [−1, 1]."""
        return map(self.decode, self.batches(*given, **more))

    def _conditions(self, asked: np.ndarray) -> tuple[dict[str, jax.Array], dict[str, np.ndarray]]:
        """Of labels or prompts (batch_size,), and that of none, (1, …)."""
        if self.texts:
            return self.texts(asked.tolist()), self.texts.null
        null = np.array([self.run.config.model.num_classes], np.int32)
        return {"label": self._rows(asked.astype(np.int32))}, {"label": null}

    def _batch(self, weights, plan, taken, seed, indices, condition, null, x, size, trajectory):
        run = self.run
        keys = image_keys(seed, indices)
        if x is None:
            x = mixture(run, run.transport.T_max)[1] * start_noise(keys, (*size, run.image_shape[-1]))
        null = {name: jnp.broadcast_to(value, condition[name].shape) for name, value in null.items()}
        guidance = run.sampling.guidance
        if run.sampling.guidance_input:
            ends = np.array([run.sampling.guidance_low, run.sampling.guidance_high]) * run.transport.T_max
            asked = jnp.array([guidance, *np.maximum(ends, run.transport.T_min)], x.dtype)
            condition, guidance = condition | {"guidance": jnp.tile(asked, (len(x), 1))}, 1.0
        return sample(run.net(weights), plan, x, condition, null, keys, guidance, trajectory, taken)

    def _rows(self, values: np.ndarray) -> jax.Array:
        """Values (batch_size, …), known to every process, over the devices."""
        where = sharding.batch_sharding(self.run.mesh)
        return jax.make_array_from_callback(values.shape, where, lambda index: values[index])


def open_generator(run: Run, batch_size: int) -> Generator:
    """A Generator with the text encoder and the autoencoder that the run needs for images. Raises ValueError."""
    texts = texts_of(run) if run.config.model.condition == "text" else None
    return Generator(run, batch_size, texts, decoder_of(run) or Pixels())


def mixture(run: Run, time: float) -> tuple[float, float]:
    """(α, σ) of the run's transport at a time."""
    host = host_transport(run.transport)
    return float(host.alpha(np.array(time))), float(host.sigma(np.array(time)))


def start_noise_of(seed: jax.Array, indices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """(B, …) standard normal noise of images (B,) of a seed."""
    return start_noise(image_keys(seed, indices), shape)


def cycled(values: np.ndarray, count: int) -> np.ndarray:
    """(count, …) rows, in turn those of values."""
    return values[np.arange(count) % len(values)]


def prompts_of(source: data.Source, count: int) -> list[str]:
    """The first captions of a source's first rows, (count,), over again where there are too few."""
    found = []
    for i in range(min(len(source), 2 * count) if source.captions else 0):
        with contextlib.suppress(data.BadRecord):
            found.append(source[i]["captions"][0])
        if len(found) == count:
            break
    return [(found or ["a picture"])[i % max(len(found), 1)] for i in range(count)]


def cycle_labels(num_classes: int, count: int) -> np.ndarray:
    """(count,) labels, every class in turn."""
    return (np.arange(count) % num_classes).astype(np.int32)
