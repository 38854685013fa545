"""The `data` and `loader` sections of a configuration as plain values, and the source and plan that they name."""

import dataclasses
import math
import os
import re
from typing import Any, cast

import numpy as np

from tim_jax.data.bad_records import check_share
from tim_jax.data.buckets import TOO_MUCH_CROPPED, TOO_SMALL, Fitting, Grid, Shape, assign
from tim_jax.data.fit import Augmentation
from tim_jax.data.plan import Bucketing, BucketPlan, make_plan, one_bucket
from tim_jax.data.sections import DataSettings, LoaderSettings
from tim_jax.data.sizes import Sizes, read_sizes
from tim_jax.data.sources import open_source
from tim_jax.data.sources.base import Source
from tim_jax.data.sources.mixture import Mixture
from tim_jax.system import caches, paths

DIRECTORY = "~/.cache/tim_jax"
# What `directory` holds that can be made again: tables, with what a kill has left of them, and references.
MADE_AGAIN = re.compile(
    r"(sizes|lines|rows|labels|part|files|plan|preferences|tar)-[0-9a-f]{16}(-\d+)?(\.(unfinished|gone)-[0-9a-f]{8})?"
    r"|reference-[0-9a-f]{16}\.npz"
)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Where the examples are and how they are read. All shapes here are those of images, also where these are encoded.

    Attributes:
        source: a name in data.SOURCES.
        shape: (height, width) of all examples, where there are no buckets.
        channels: of images or latents.
        batch_size: of a global batch, where there are no buckets.
        split: see Location.
        held_out_share: see Location.
        path: see Location.
        images: see Location.
        mixture: ((source, path, weight), ...) in place of one source.
        num_classes: see Location.
        captions: see Location.
        bucketing: how buckets are made; None for none.
        fitting: how images are brought to `shape`, where there are no buckets.
        augmentation: how examples are varied.
        directory: the folder that embedded data, indices and plans are written to.
        cache_gib: GiB that what can be made again may take there; 0 for any.
        max_bad_share: the share of bad records that a run may have.
        factor: pixels of an image, in each direction, per position of the latent that is made of it; 1 where images
            are not encoded.
        section: the section of the configuration that names the source, for messages.
    """

    source: str
    shape: Shape
    channels: int
    batch_size: int
    split: str = "train"
    held_out_share: float = 0.0
    path: str = ""
    images: str = ""
    mixture: tuple[tuple[str, str, float], ...] = ()
    num_classes: int = 0
    captions: bool = True
    bucketing: Bucketing | None = None
    fitting: Fitting = Fitting()
    augmentation: Augmentation = Augmentation()
    directory: str = DIRECTORY
    cache_gib: float = 0.0
    max_bad_share: float = 0.01
    factor: int = 1
    section: str = "data"

    def batch_size_of(self, shape: Shape) -> int:
        """The size of a global batch of a shape, that of the network's input, where there are images enough."""
        images = (self.factor * shape[0], self.factor * shape[1])
        return self.bucketing.batch_size_of(images) if self.bucketing else self.batch_size

    @property
    def drawn_size(self) -> int:
        """Pixels of the sides of images that are drawn: as large as the largest that is asked for."""
        if not self.bucketing:
            return max(self.shape)
        sides = [side for shape in self.bucketing.table for side in shape]
        return max(sides, default=math.ceil(self.bucketing.area**0.5))

    @classmethod
    def read(
        cls,
        data: DataSettings,
        loader: LoaderSettings,
        side: int,
        batch_multiple: int = 1,
        tokens_multiple: int = 1,
        num_classes: int = 0,
        captions: bool = True,
        factor: int = 1,
    ) -> "Inputs":
        """Makes them of the sections of a configuration.

        Args:
            data: the section `data`.
            loader: the section `loader`.
            side: positions of the network's input per token and direction.
            batch_multiple: what the size of a global batch must be a multiple of.
            tokens_multiple: what the number of tokens must be a multiple of, mesh.sequence.
            num_classes: labels lie below it; 0 says that labels are not read.
            captions: whether captions are read.
            factor: see above.

        Raises:
            ValueError: a value is not allowed, or values exclude each other.
        """
        side, buckets, bucketing = side * factor, data.buckets, None
        fitting = Fitting(max_cropped=buckets.max_cropped, enlarge=buckets.enlarge)
        fitting.check()
        table = tuple((int(h) * factor, int(w) * factor) for h, w in buckets.table)
        if table or buckets.area:
            bucketing = Bucketing(
                table=table,
                area=buckets.area * factor**2,
                max_buckets=buckets.max_buckets,
                keep_rare=buckets.keep_rare,
                tokens=buckets.tokens,
                batch_size=data.batch_size,
                grid=Grid(side, tokens_multiple, batch_multiple),
                fitting=fitting,
            )
            bucketing.check()
        augmentation = Augmentation(data.flip, data.random_crop, side)
        augmentation.check()
        return cls(
            source=data.source,
            shape=(data.height * factor, data.width * factor),
            channels=data.channels if factor == 1 else 3,
            batch_size=data.batch_size,
            split=data.split,
            held_out_share=data.held_out_share,
            path=data.path,
            images=data.images,
            mixture=cast(tuple[tuple[str, str, float], ...], tuple(map(tuple, data.mixture))),
            num_classes=num_classes,
            captions=captions,
            bucketing=bucketing,
            fitting=fitting,
            augmentation=augmentation,
            directory=os.path.abspath(paths.given(loader.directory or DIRECTORY, "loader.directory", ())),
            cache_gib=loader.cache_gib,
            max_bad_share=loader.max_bad_share,
            factor=factor,
        )


def open_data(settings: Inputs, split: str | None = None) -> tuple[Source, BucketPlan]:
    """Opens the source that settings name, and makes or reads its plan.

    Args:
        settings: what to open.
        split: in place of that of the settings.

    Raises:
        UnknownSplit: the source has no such part.
        ValueError: there is no such source, or its examples do not fit the settings.
        TooManyBadRecords: more of its headers than max_bad_share show bad records; the message names their list.
    """
    source = open_split(settings, settings.split if split is None else split)
    caches.trim(settings.directory, MADE_AGAIN, settings.cache_gib)
    channels, key = source.image_shape[-1], settings.section
    if channels != settings.channels:
        raise ValueError(f"data.channels is {settings.channels}; it must be {channels} for {key}.source {source.name}")
    sizes = read_sizes(source, settings.directory)
    check_share(sizes.bad, len(source), settings.max_bad_share, sizes.listed)
    if settings.bucketing is None:
        return source, _plan_of_one_shape(source, sizes, settings)
    fitting = dataclasses.replace(settings.bucketing.fitting, resize=not source.latents)
    how = dataclasses.replace(settings.bucketing, fitting=fitting)
    return source, make_plan(source, sizes, how, settings.directory)


def _plan_of_one_shape(source: Source, sizes: Sizes, settings: Inputs) -> BucketPlan:
    """One bucket of `settings.shape`, with all examples that can be brought to it.

    Raises:
        ValueError: there is none, or they are of another size and cannot be resized.
    """
    usable = np.flatnonzero(np.asarray(sizes.height) > 0) if sizes.bad else slice(None)
    heights, widths = np.asarray(sizes.height[usable]), np.asarray(sizes.width[usable])
    if not len(heights):
        raise ValueError(f"{settings.section}.source is {source.name}; it must have an example that can be used")
    if (heights == settings.shape[0]).all() and (widths == settings.shape[1]).all():
        return one_bucket(source, settings.batch_size, settings.shape)
    how = Bucketing(table=(settings.shape,), batch_size=settings.batch_size, fitting=settings.fitting)
    bucket, _ = assign(heights, widths, how.table, how.fitting)
    if source.latents or source.paired_noise or not (bucket >= 0).any():
        raise ValueError(_does_not_fit(source, settings, heights, widths, bucket))
    plan = make_plan(source, sizes, how, settings.directory)
    # The size of a batch is as given, also where there are fewer examples than that.
    buckets = tuple(dataclasses.replace(one, batch_size=settings.batch_size) for one in plan.buckets)
    return dataclasses.replace(plan, buckets=buckets)


def _does_not_fit(source: Source, settings: Inputs, heights: np.ndarray, widths: np.ndarray, bucket: np.ndarray) -> str:
    """What to say where no example of these sizes can be brought to `settings.shape`, with what to type instead."""
    factor = settings.factor
    height, width = (f"{side / factor:g}" for side in settings.shape)
    said = f"data.height, data.width are {height}, {width}; they must"
    sides = [(int(side.min()) / factor, int(side.max()) / factor) for side in (heights, widths)]
    if source.latents or source.paired_noise:
        what = "latents" if source.latents else "pairs"
        if any(low < high for low, high in sides):
            (low, high), (narrow, wide) = sides
            return (
                f"{said} be those of all examples, and those of {source.name} are from {low:g} to {high:g} high and "
                f"from {narrow:g} to {wide:g} wide; {what} are not resized: add "
                f"--config.data.buckets.area={int(high * wide)} for buckets"
            )
        (right, _), (wide, _) = sides
        return (
            f"{said} be {right:g}, {wide:g} for {settings.section}.source {source.name}, as {what} are not resized: "
            f"add --config.data.height={right:g} --config.data.width={wide:g}"
        )
    if (bucket == TOO_SMALL).sum() < (bucket == TOO_MUCH_CROPPED).sum():
        return (
            f"{said} be nearer to the aspect ratios of {source.name}, all of whose images would lose more than "
            f"data.buckets.max_cropped of their area: add --config.data.buckets.max_cropped=0.9"
        )
    return (
        f"{said} be smaller, as no image of {source.name} is as large: the largest are {sides[0][1]:g} high and "
        f"{sides[1][1]:g} wide; to enlarge them add --config.data.buckets.enlarge=True"
    )


def open_split(settings: Inputs, split: str) -> Source:
    """A split of the source of settings, or of their mixture. Raises ValueError."""
    common: dict[str, Any] = {
        "channels": settings.channels,
        "size": settings.drawn_size,
        "num_classes": settings.num_classes,
        "images": settings.images,
        "held_out_share": settings.held_out_share,
        "captions": settings.captions,
        "split_key": "data.split" if split == settings.split else "evaluation.held_out",
    }
    directory = settings.directory
    if not settings.mixture:
        return open_source(settings.source, directory, split, settings.section, path=settings.path, **common)
    sources = tuple(open_source(name, directory, split, path=path, **common) for name, path, _ in settings.mixture)
    return Mixture(sources, tuple(weight for *_, weight in settings.mixture))
