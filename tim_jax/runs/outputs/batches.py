"""Images of requests, size by size and in batches; each is the same whatever else is asked for beside it."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tim_jax.config.run import Run
from tim_jax.runs.generation import Generator
from tim_jax.runs.labels import repeated
from tim_jax.runs.outputs.requests import Request
from tim_jax.runs.searching import Searcher


class Samples(NamedTuple):
    """All images of one request.

    Attributes:
        place: of the request in its list.
        examples: (count, h, w, C), as the network draws them.
        images: (count, H, W, c), what they are decoded to.
        found: (count,) what a search says of each; {} without one.
    """

    place: int
    examples: np.ndarray
    images: np.ndarray
    found: Sequence[Mapping[str, Any]] = ()


def batch_size(run: Run, requests: Sequence[Request]) -> int:
    """The size of all batches: as many images as are asked for of one size, at most `sampling.batch_size`."""
    sizes = {request.size for request in requests}
    counts = [sum(request.count for request in requests if request.size == size) for size in sizes]
    return min(max(counts), run.config.sampling.batch_size)


def draw(
    generator: Generator,
    weights: Any,
    times: np.ndarray,
    requests: Sequence[Request],
    *,
    seed: int = 0,
    start: np.ndarray | None = None,
    progress: Callable[[int], Any] = lambda count: None,
    searcher: Searcher | None = None,
) -> Iterator[Samples]:
    """Draws the images of requests, first those of the first size.

    Args:
        generator: of the run.
        weights: parameters of the network.
        times: falling, from the time that sampling starts at.
        requests: what is asked for.
        seed: of the noise.
        start: states (n, h, w, C) at the first of `times`, where all requests have one size; by default noise.
        progress: called after every batch with the number of its images.
        searcher: looks for samples of a high reward, from noise; None to draw them as they come.

    Yields:
        The samples of each request, as soon as they are there.
    """
    for size in dict.fromkeys(request.size for request in requests):
        places = [i for i, request in enumerate(requests) if request.size == size]
        conditions = [requests[i].condition for i in places for _ in range(requests[i].count)]
        numbers = np.concatenate([requests[i].first + np.arange(requests[i].count) for i in places])
        if searcher is None:
            drawn = generator.batches(weights, times, conditions, seed=seed, start=start, size=size, numbers=numbers)
            batches: Iterator[Any] = ((examples, [{}] * len(examples)) for examples in drawn)
        else:
            batches = searcher.batches(generator, weights, times, conditions, seed=seed, size=size, numbers=numbers)
        stream = _one_by_one(generator, batches, progress)
        for i in places:
            examples, images, found = zip(*itertools.islice(stream, requests[i].count), strict=True)
            yield Samples(i, np.stack(examples), np.stack(images), found)


def _one_by_one(
    generator: Generator, batches: Iterator[tuple[np.ndarray, Sequence[Any]]], progress: Callable[[int], Any]
) -> Iterator[tuple[np.ndarray, np.ndarray, Any]]:
    """(example, image, what was found) of each."""
    for examples, found in batches:
        images = generator.decode(repeated(examples, generator.batch_size))  # one program, also for the last batch
        progress(len(examples))
        yield from zip(examples, images, found)


def sampling_record(run: Run, training_step: int, seed: int) -> dict[str, Any]:
    """What all images of a command have in common, by the names that the configuration gives it."""
    sampling = run.config.sampling.to_dict() | {"sampler": run.sampling.sampler}
    if not run.sampling.steering.active:
        del sampling["steering"]
    if run.config.model.condition == "class" or run.network.use_text_mask:
        del sampling["batch_size"]  # no image depends on it
    return sampling | {"training_step": training_step, "seed": seed}
