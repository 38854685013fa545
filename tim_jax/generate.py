"""Images from a trained run: what sampling, evaluation and the pictures of training share."""

import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tim_jax.config import Run
from tim_jax.training import checkpoints, sharding
from tim_jax.training.loop import on_mesh
from tim_jax.training.state import TrainState
from tim_jax.transitions.sampler import image_keys, make_plan, padded, sample, start_noise


def load_weights(run: Run, workdir) -> tuple[Any, int]:
    """The weights that `sampling.weights` names, on the run's mesh, and the step, from the latest good checkpoint.

    Raises ValueError if there is no checkpoint, or for a text model, whose prompts have no encoder here yet.
    """
    if run.config.model.condition != "class":
        raise ValueError(f"--workdir={workdir}: model.condition is {run.config.model.condition!r}; it must be 'class'")
    if not (workdir / "checkpoints").exists():
        raise ValueError(f"--workdir={workdir}: has no checkpoint yet")
    manager = checkpoints.open_manager(workdir, run.loop.keep, run.loop.checkpoint_every, read_only=True)
    step, damaged = checkpoints.latest_good(manager)
    for later, reason in damaged.items():
        print(f"warning: checkpoint of step {later} not used: {reason}", file=sys.stderr)
    state: TrainState = checkpoints.restore(manager, run.trainer.abstract, step)
    manager.close()
    return run.weights(state), int(state.step)


class Generator:
    """Samples with given weights; image i of a seed is the same whatever the batch and the mesh.

    One program is compiled for each size, whatever the number of steps (to 64; others for more).
    """

    def __init__(self, run: Run, batch_size: int):
        shards = sharding.batch_shards(run.mesh)
        self.run, self.batch_size = run, -(-batch_size // shards) * shards
        # Whole on every device, so that every process has all images.
        self._sample = jax.jit(self._batch, static_argnums=(6, 7), out_shardings=sharding.replicated(run.mesh))

    def _batch(self, weights, plan, steps, seed, indices, labels, size, trajectory):
        run = self.run
        keys = image_keys(seed, indices)
        noise = start_noise(keys, (*size, run.image_shape[-1]))
        condition = {"label": labels}
        null = {"label": jnp.full_like(labels, run.config.model.num_classes)}
        guidance = run.sampling.guidance
        return sample(run.net(weights), plan, noise, condition, null, keys, guidance, trajectory, steps)

    def _rows(self, values: np.ndarray) -> jax.Array:
        """Values (batch_size,), known to every process, over the devices."""
        where = sharding.batch_sharding(self.run.mesh)
        return jax.make_array_from_callback(values.shape, where, lambda index: values[index])

    def __call__(
        self,
        weights: Any,
        steps: int,
        seed: int,
        labels: np.ndarray,
        size: tuple[int, int] | None = None,
        trajectory: bool = False,
    ) -> np.ndarray:
        """Images (n, h, w, C) for labels (n,), or trajectories (steps + 1, n, h, w, C).

        size: (h, w), multiples of the patch; by default `data.height` and `width`.
        """
        parts = list(self.batches(weights, steps, seed, labels, size, trajectory))
        return np.concatenate(parts, axis=1 if trajectory else 0)

    def batches(
        self,
        weights: Any,
        steps: int,
        seed: int,
        labels: np.ndarray,
        size: tuple[int, int] | None = None,
        trajectory: bool = False,
    ) -> Iterator[np.ndarray]:
        """The same in batches of at most `batch_size`, each drawn when it is asked for."""
        plan = make_plan(self.run.transport, steps, self.run.sampling)
        plan = plan if trajectory else padded(plan)
        labels, size = np.asarray(labels, np.int32), tuple(size or self.run.image_shape[:2])
        for first in range(0, len(labels), self.batch_size):
            indices = self._rows(np.arange(first, first + self.batch_size, dtype=np.uint32))
            rows = self._rows(np.resize(labels[first:], self.batch_size))
            with on_mesh(self.run.mesh):
                images = self._sample(weights, plan, np.int32(steps), np.uint32(seed), indices, rows, size, trajectory)
            yield np.asarray(images)[(slice(None),) * trajectory + (slice(len(labels) - first),)]


def cycle_labels(num_classes: int, count: int) -> np.ndarray:
    """(count,) labels, every class in turn."""
    return (np.arange(count) % num_classes).astype(np.int32)
