"""A trained run in the hands of a program: `tim = tim_jax.load(path)`, then `tim("a red bicycle", steps=4)`."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict
from PIL import Image

from tim_jax.config.build import build
from tim_jax.config.keys import flatten
from tim_jax.config.overrides import override
from tim_jax.config.run import Run
from tim_jax.config.sampling import make_sampling
from tim_jax.evaluation import pictures
from tim_jax.runs import workdir
from tim_jax.runs.encoders import decoder_of, texts_of
from tim_jax.runs.generation import Generator
from tim_jax.runs.outputs.batches import batch_size, drawn
from tim_jax.runs.outputs.requests import by_labels, by_prompts, read_size
from tim_jax.runs.step_grid import with_found_grid
from tim_jax.system import compilation_cache
from tim_jax.training import names, warm_start
from tim_jax.transitions.sampling.sampler import make_plan, time_grid


def load(path: str | os.PathLike, **overrides: Mapping[str, Any]) -> "Tim":
    """The run in a workdir, at its latest checkpoint, or at the one that `path` is (WORKDIR/checkpoints/STEP).

    overrides: sections of the configuration with keys to change, such as codecs={"autoencoder": "DIR"},
    sampling={"guidance": 2.5}, mesh={"data": 1}. Raises ValueError in one line.
    """
    saved = warm_start.find(str(path), "path")
    texts = {key: str(value) for key, value in flatten(overrides).items()}
    folder = saved.directory.parent
    run = build(workdir.load(folder, texts))
    compilation_cache.use(run.config.training.compilation_cache)
    return Tim(with_found_grid(run, folder, saved.step), saved)


class Tim:
    """A run with its weights on its devices, and the frozen parts that images of it need."""

    def __init__(self, run: Run, saved: warm_start.Saved):
        self.run, self._decode = run, decoder_of(run)
        if self._decode is None:
            raise ValueError("codecs.autoencoder is ''; rows of this run are latents: name what decodes them")
        self._texts = texts_of(run) if run.config.model.condition == "text" else None
        abstract = names.by_name(run.trainer.abstract.params["online"])
        self._weights = unflatten_dict(warm_start.read_weights(saved, run.sampling.ema, abstract), sep="/")
        self._generators: dict[tuple, Generator] = {}
        self._generator(1, None).load()

    def __call__(
        self,
        asked: str | int | Sequence[str] | Sequence[int],
        steps: int = 4,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        guidance: float | None = None,
        count: int = 1,
    ) -> list[Image.Image]:
        """`count` images of each prompt, or of each label, one after the other.

        size: (height, width) in pixels; by default the run's, as is guidance. The images are those of
        python -m tim_jax.sample with the same seed. Raises ValueError in one line.
        """
        for name, value, least in (("steps", steps, 1), ("seed", seed, 0), ("count", count, 1)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}")
        if seed >= 2**32:
            raise ValueError(f"seed is {seed}; it must be below 2^32")
        run, factor = self.run, self._decode.factor
        rows = run.image_shape[:2]
        if size is not None:
            rows = read_size("size is", "x".join(map(str, size)), run, factor)
        asked = [asked] if isinstance(asked, str | int | np.integer) else list(asked)
        if not asked:
            raise ValueError("there must be at least one prompt or label")
        if self._texts:
            self._texts.check(asked)
            asked = by_prompts([("", {"prompt": prompt}) for prompt in asked], rows, int(count), run)
        else:
            asked = by_labels([label for label in asked for _ in range(count)], rows, run.config.model.num_classes)
        generator = self._generator(batch_size(run, asked), guidance)
        sampling = generator.run.sampling
        times = time_grid(run.transport, int(steps), sampling)
        make_plan(run.transport, times, sampling)
        images = [one.images for one in drawn(generator, self._weights, times, asked, int(seed))]
        return [Image.fromarray(image) for image in pictures.to_uint8(np.concatenate(images))]

    def _generator(self, count: int, guidance: float | None) -> Generator:
        """One that is kept, so that calls with other numbers of images and steps compile little anew."""
        rows = min(1 << (count - 1).bit_length(), max(count, self.run.config.sampling.batch_size))
        run = self.run
        if guidance is not None:
            config = override(run.config, {"sampling.guidance": str(guidance)})
            sampling = make_sampling(config, run.trainer.step.objective)
            sampling = dataclasses.replace(sampling, optimal_times=run.sampling.optimal_times)
            run = dataclasses.replace(run, sampling=sampling)
        key = rows, run.sampling.guidance
        if key not in self._generators:
            self._generators[key] = Generator(run, rows, self._texts, self._decode)
        return self._generators[key]
