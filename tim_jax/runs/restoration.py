"""What a coupled run restores (`transitions/coupling.py`): true images, degraded by an operator that draws by key."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from tim_jax import data
from tim_jax.config.run import Run
from tim_jax.data.annotations import SEED
from tim_jax.data.order import index_at
from tim_jax.evaluation import pictures
from tim_jax.evaluation.restored import psnr
from tim_jax.runs.input_pipeline import one_shape, open_held_out
from tim_jax.runs.reference_data import labelled_reader
from tim_jax.transitions.coupling import OF_IMAGE, Coupling
from tim_jax.transitions.objective import Objective
from tim_jax.transitions.operators import OPERATORS, parse, picture
from tim_jax.transitions.sampling.noise import image_keys

NOTHING = "objective.coupling.task is not 'none'; it must be 'none' where nothing says which images are restored"


@dataclasses.dataclass(frozen=True)
class Truths:
    """True images: number i of a seed's restorations is that of image i, in turn.

    Attributes:
        part: of the data that they are, or where they were read.
        count: how many there are.
        read: numbers (n,) below `count` → images (n, h, w, C) in [−1, 1] and labels (n,).
        caption: a number below `count` → a caption of that image.
    """

    part: str
    count: int
    read: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    caption: Callable[[int], str] = lambda number: data.NO_CAPTION

    def __call__(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The images and labels of the restorations with these numbers (n,)."""
        return self.read(np.asarray(numbers, np.int64) % self.count)

    def captions(self, count: int) -> list[str]:
        """Those of restorations 0 … count − 1."""
        return [self.caption(number % self.count) for number in range(count)]


def coupling_of(run: Run) -> Coupling:
    """How a run's noise depends on its data."""
    return cast(Objective, run.trainer.step.objective).coupling


def check_none(run: Run, doing: str) -> None:
    """Raises ValueError, in one line, for a run that restores images, which a command does not do."""
    if coupling_of(run).active:
        raise ValueError(f"objective.coupling.task is {coupling_of(run).task!r}; it must be 'none' for {doing}")


def check_samples(run: Run, doing: str) -> None:
    """Raises ValueError, in one line, where samples restore images, by training or by steering, for such a command."""
    check_none(run, doing)
    steering = run.sampling.steering
    if steering.measures:
        raise ValueError(
            f"sampling.steering.operator is {steering.operator!r}; it must be '', or a reward, for {doing}"
        )


def check_path(run: Run) -> None:
    """Raises ValueError, in one line, where states are not α x + σ ε with normal noise ε."""
    check_none(run, "states of data and normal noise")
    if run.transport.gamma:
        raise ValueError(f"transport.gamma is {run.transport.gamma}; it must be 0 for states of data and noise alone")


def open_truths(run: Run) -> Truths | None:
    """The held-out images in a fixed shuffle, or where nothing is held out those of training, with a warning.

    The first ones are like all of them, in whatever order these are stored. They are restored by a coupled run, and by
    one that is steered towards their measurements; None of other runs.
    """
    if not coupling_of(run).active and not run.sampling.steering.measures:
        return None
    found = open_held_out(run)
    if found is None:
        logging.warning("evaluation.held_out is %r: images of training are restored", run.evaluation.held_out)
        found = (run.data.split, *one_shape(run, run.data.split))
    part, source, fit = found
    read, order = labelled_reader(run, source, fit), functools.partial(index_at, size=len(source), seed=SEED)
    return Truths(
        part,
        len(source),
        lambda numbers: read(order(numbers))[:2],
        lambda number: data.first_caption(source, int(order(np.array([number]))[0])),
    )


def given_truths(images: np.ndarray, labels: np.ndarray, part: str = "") -> Truths:
    """Images (n, h, w, C) in [−1, 1] of one's own with their labels (n,)."""
    return Truths(part, len(images), lambda numbers: (images[numbers], labels[numbers]))


def degraded(run: Run, keys: jax.Array, truth: jax.Array) -> jax.Array:
    """condition["image"] of true images (B, h, w, C), by the keys (B,) of the images that are sampled."""
    return coupling_of(run).degrade(jax.vmap(lambda key: jax.random.fold_in(key, jnp.uint32(OF_IMAGE)))(keys), truth)


def measured(run: Run, images: np.ndarray) -> np.ndarray:
    """What the operator of `sampling.steering` measures of images (n, h, w, C)."""
    name, numbers = parse(run.sampling.steering.operator)
    return np.asarray(OPERATORS[name].measure(jnp.asarray(images), *numbers))


def inputs(run: Run, truths: Truths, seed: int, numbers: np.ndarray) -> np.ndarray:
    """The degraded images (n, h, w, C), zero where pixels are missing, that restorations of a seed start from.

    Of a run that is steered they are the measurements, black where these are no images.
    """
    if not coupling_of(run).active:
        x = truths(numbers)[0]
        found = picture(measured(run, x), x.shape[1:3], x.shape[-1])
        return -np.ones_like(x) if found is None else found
    keys = image_keys(jnp.uint32(seed), jnp.asarray(numbers, jnp.uint32))
    image = degraded(run, keys, jnp.asarray(truths(numbers)[0]))
    return np.asarray(coupling_of(run).mean(image))


def scored(batches: Iterator[np.ndarray], truths: Truths, found: list[float]) -> Iterator[np.ndarray]:
    """Passes restorations 0, 1, … on and appends the PSNR of each to `found`."""
    for images in batches:
        found += psnr(images, truths(len(found) + np.arange(len(images)))[0]).tolist()
        yield images


def input_psnr(run: Run, truths: Truths, count: int, seed: int = 0) -> float:
    """The mean PSNR of the degraded images themselves."""
    numbers = np.arange(min(count, truths.count))
    given = pictures.as_written(inputs(run, truths, seed, numbers))
    return float(psnr(given, truths(numbers)[0]).mean())


def around(run: Run, truths: Truths, restored: Mapping[Any, Any], seed: int = 0) -> dict[Any, Any]:
    """The rows of a picture of restorations 0 … n − 1: input, {steps: (n, h, w, C)}, truth."""
    numbers = np.arange(len(next(iter(restored.values()))))
    return {"input": inputs(run, truths, seed, numbers), **restored, "truth": truths(numbers)[0]}
