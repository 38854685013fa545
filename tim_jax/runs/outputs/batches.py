"""Images of what is asked for, size by size and in batches: each is the same whatever else is asked for beside it."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tim_jax.config.run import Run
from tim_jax.runs.generation import Generator, cycled
from tim_jax.runs.outputs.requests import Request


class Drawn(NamedTuple):
    """place: in the list of what is asked. rows (count, h, w, C), and the images (count, H, W, c) that they become."""

    place: int
    rows: np.ndarray
    images: np.ndarray


def batch_size(run: Run, asked: Sequence[Request]) -> int:
    """Of all batches: as many as there are of one size, at most `sampling.batch_size`."""
    counts = {size: sum(of.count for of in asked if of.size == size) for size in {of.size for of in asked}}
    return min(max(counts.values()), run.config.sampling.batch_size)


def drawn(
    generator: Generator,
    weights: Any,
    times: np.ndarray,
    asked: Sequence[Request],
    seed: int = 0,
    x: np.ndarray | None = None,
    told: Callable[[int], None] = lambda count: None,
) -> Iterator[Drawn]:
    """All images of each thing asked for, as soon as they are there; first those of the first size.

    x: states (n, h, w, C) at the first of `times`, where all have one size; by default noise. told: of every batch, how
    many images it has.
    """
    for size in dict.fromkeys(of.size for of in asked):
        places = [i for i, of in enumerate(asked) if of.size == size]
        whats = [asked[i].what for i in places for _ in range(asked[i].count)]
        numbers = np.concatenate([asked[i].first + np.arange(asked[i].count) for i in places])
        batches = generator.batches(weights, times, whats, seed, x, size, numbers=numbers)
        stream = _one_by_one(generator, batches, told)
        for i in places:
            rows, images = zip(*itertools.islice(stream, asked[i].count), strict=True)
            yield Drawn(i, np.stack(rows), np.stack(images))


def _one_by_one(generator, batches, told):
    for rows in batches:
        images = generator.decode(cycled(rows, generator.batch_size))  # one program, also for the last batch
        told(len(rows))
        yield from zip(rows, images)


def settings(run: Run, training_step: int, seed: int) -> dict[str, Any]:
    """What all images of a command have in common, by the names that the configuration gives it."""
    sampling = dict(run.config.sampling) | {"sampler": run.sampling.sampler}
    del sampling["batch_size"]  # no image depends on it
    return sampling | {"training_step": training_step, "seed": seed}
