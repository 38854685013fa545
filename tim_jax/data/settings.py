"""The `data` and `loader` sections of a configuration as plain values, and the source and plan that they name."""

import dataclasses
import os
from typing import Any, cast

import numpy as np

from tim_jax.data.bad_records import check_share
from tim_jax.data.buckets import Fitting, Grid, Shape
from tim_jax.data.fit import Augmentation
from tim_jax.data.plan import Bucketing, BucketPlan, make_plan, one_bucket
from tim_jax.data.sections import DataSettings, LoaderSettings
from tim_jax.data.sizes import read_sizes
from tim_jax.data.sources import open_source
from tim_jax.data.sources.base import Source
from tim_jax.data.sources.mixture import Mixture
from tim_jax.system import paths

DIRECTORY = "~/.cache/tim_jax"


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
        augmentation: how examples are varied.
        directory: the folder that embedded data, indices and plans are written to.
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
    augmentation: Augmentation = Augmentation()
    directory: str = DIRECTORY
    max_bad_share: float = 0.01
    factor: int = 1
    section: str = "data"

    def batch_size_of(self, shape: Shape) -> int:
        """The size of a global batch of a shape, that of the network's input, where there are images enough."""
        images = (self.factor * shape[0], self.factor * shape[1])
        return self.bucketing.batch_size_of(images) if self.bucketing else self.batch_size

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
                fitting=Fitting(max_cropped=buckets.max_cropped, enlarge=buckets.enlarge),
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
            augmentation=augmentation,
            directory=os.path.abspath(paths.given(loader.directory or DIRECTORY, "loader.directory", ())),
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
    source = _open(settings, settings.split if split is None else split)
    height, width, channels = source.image_shape
    key = settings.section
    if channels != settings.channels:
        raise ValueError(f"data.channels is {settings.channels}; it must be {channels} for {key}.source {source.name}")
    if settings.bucketing is None:
        shape = (height, width) if height and width else _common_size(source, settings)
        for name, wanted, found in zip(("height", "width"), settings.shape, shape, strict=True):
            if wanted != found:
                value, right = wanted // settings.factor, f"{found / settings.factor:g}"
                raise ValueError(f"data.{name} is {value}; it must be {right} for {key}.source {source.name}")
        return source, one_bucket(source, settings.batch_size, shape)
    sizes = read_sizes(source, settings.directory)
    check_share(sizes.bad, len(source), settings.max_bad_share, sizes.listed)
    fitting = dataclasses.replace(settings.bucketing.fitting, resize=not source.latents)
    how = dataclasses.replace(settings.bucketing, fitting=fitting)
    return source, make_plan(source, sizes, how, settings.directory)


def _common_size(source: Source, settings: Inputs) -> Shape:
    """The (height, width) that all examples of a source have which does not say so itself, by their headers.

    Raises:
        ValueError: they differ, or none can be used.
        TooManyBadRecords: more headers than max_bad_share show bad records.
    """
    sizes = read_sizes(source, settings.directory)
    check_share(sizes.bad, len(source), settings.max_bad_share, sizes.listed)
    usable = np.asarray(sizes.height) > 0
    ranges = [
        (int(side[usable].min()), int(side[usable].max())) for side in (sizes.height, sizes.width) if usable.any()
    ]
    if not ranges:
        raise ValueError(f"{settings.section}.source is {source.name}; it must have an example that can be used")
    (height, highest), (width, widest) = ranges
    if (height, width) != (highest, widest):
        raise ValueError(
            f"data.buckets.area is 0; it must be given, or data.buckets.table, as the images of {source.name} differ "
            f"in size: from {height} to {highest} high, from {width} to {widest} wide"
        )
    return height, width


def _open(settings: Inputs, split: str) -> Source:
    """A split of the source of settings, or of their mixture. Raises ValueError."""
    common: dict[str, Any] = {
        "channels": settings.channels,
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
