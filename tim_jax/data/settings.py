"""What the `data` and `loader` sections of a configuration say, as plain values, and what is opened by them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tim_jax.data.buckets import MOST_BUCKETS, Fitting, Grid, Shape
from tim_jax.data.faults import check_share
from tim_jax.data.fit import Look
from tim_jax.data.plan import Bucketing, BucketPlan, make_plan, one_bucket
from tim_jax.data.sizes import read_sizes
from tim_jax.data.sources.base import Source
from tim_jax.data.sources.mixture import Mixture

DIRECTORY = "~/.cache/tim_jax"


@dataclasses.dataclass(frozen=True)
class Inputs:
    """source, path, split, channels, num_classes: see Location. mixture: ((source, path, weight), ...) in place of one
    source. shape: of every row, where there are no buckets. bucketing: how they are made, or None. look: of rows.
    directory: where embedded data, indices and plans are written. max_bad_share: of bad records in a run. factor:
    pixels of an image per position of the row that is made of it; all shapes here are those of images."""

    source: str
    shape: Shape
    channels: int
    batch_size: int
    split: str = "train"
    path: str = ""
    mixture: tuple[tuple[str, str, float], ...] = ()
    num_classes: int = 0
    bucketing: Bucketing | None = None
    look: Look = Look()
    directory: str = DIRECTORY
    max_bad_share: float = 0.01
    factor: int = 1

    def rows(self, shape: Shape) -> int:
        """Rows, of this shape, of a global batch, before it is known how many images the shape has."""
        images = tuple(self.factor * side for side in shape)
        return self.bucketing.rows_of(images) if self.bucketing else self.batch_size

    @classmethod
    def read(
        cls,
        data: Mapping[str, Any],
        loader: Mapping[str, Any],
        side: int,
        rows_multiple: int = 1,
        tokens_multiple: int = 1,
        num_classes: int = 0,
        factor: int = 1,
    ) -> "Inputs":
        """Settings from the `data` and `loader` sections. side: positions of a row per token and direction.
        rows_multiple: what the rows of a batch are a multiple of; tokens_multiple: mesh.sequence. factor: of
        images that are encoded as they are read.

        Keys that a section lacks have their defaults. Raises ValueError that names key and value.
        """
        if data.get("paired_noise", False):
            check_noise(data)
        buckets, side = dict(data.get("buckets", {})), side * factor
        table = tuple((int(h) * factor, int(w) * factor) for h, w in buckets.get("table", ()))
        bucketing = None
        if table or buckets.get("area", 0):
            bucketing = Bucketing(
                table=table,
                area=buckets.get("area", 0) * factor**2,
                max_buckets=buckets.get("max_buckets", MOST_BUCKETS),
                tokens=buckets.get("tokens", 0),
                rows=data["batch_size"],
                grid=Grid(side, tokens_multiple, rows_multiple),
                fitting=Fitting(
                    max_cropped=buckets.get("max_cropped", Fitting.max_cropped),
                    enlarge=buckets.get("enlarge", False),
                ),
            )
            bucketing.check()
        share = loader.get("max_bad_share", cls.max_bad_share)
        if not 0 <= share <= 1:
            raise ValueError(f"loader.max_bad_share is {share}; it must lie in [0, 1]")
        look = Look(data.get("flip", 0.0), data.get("random_crop", False), side)
        look.check()
        return cls(
            source=data["source"],
            shape=(data["height"] * factor, data["width"] * factor),
            channels=data["channels"] if factor == 1 else 3,
            batch_size=data["batch_size"],
            split=data.get("split", "train"),
            path=data.get("path", ""),
            mixture=tuple(tuple(part) for part in data.get("mixture", ())),
            num_classes=num_classes,
            bucketing=bucketing,
            look=look,
            directory=loader.get("directory", "") or DIRECTORY,
            max_bad_share=share,
            factor=factor,
        )


def check_noise(data: Mapping[str, Any]) -> None:
    """Raises ValueError for what does not go with rows that bring their noise: it belongs to the whole row, as it was
    made, and to its condition."""
    buckets = data.get("buckets", {})
    for name, value, right in (
        ("encode", data.get("encode", False), False),
        ("mixture", data.get("mixture", ()), ()),
        ("flip", data.get("flip", 0.0), 0.0),
        ("condition_dropout", data.get("condition_dropout", 0.0), 0.0),
        ("buckets.table", buckets.get("table", ()), ()),
        ("buckets.area", buckets.get("area", 0), 0),
    ):
        if value:
            raise ValueError(f"data.{name} is {value!r}; it must be {right!r} where data.paired_noise is True")


def open_data(settings: Inputs, open_source: Any, split: str | None = None) -> tuple[Source, BucketPlan]:
    """The source that settings name, and its plan. open_source: that of this room.

    Raises ValueError if there is no such source, its rows do not fit the settings, or more of its headers than
    max_bad_share show bad records (TooManyBadRecords, with the list).
    """
    split = split or settings.split
    common = {"channels": settings.channels, "num_classes": settings.num_classes}
    if settings.mixture:
        parts, weights = [], []
        for part in settings.mixture:
            if len(part) != 3:
                raise ValueError(f"data.mixture has {part!r}; each part must be (source, path, weight)")
            name, path, weight = part
            parts.append(open_source(name, settings.directory, split, path=path, **common))
            weights.append(weight)
        source = Mixture(tuple(parts), tuple(weights))
    else:
        source = open_source(settings.source, settings.directory, split, path=settings.path, **common)
    if source.image_shape[-1] != settings.channels:
        raise ValueError(
            f"data.channels is {settings.channels}; it must be {source.image_shape[-1]} for source {source.name}"
        )
    if settings.bucketing is None:
        if source.image_shape[:2] != settings.shape and None not in source.image_shape:
            raise ValueError(
                f"data.height, width are {settings.shape}; those of {source.name} are {source.image_shape[:2]}"
            )
        if None in source.image_shape:
            raise ValueError(
                "data.buckets.table and area are empty; one must be given, as the images of "
                f"{source.name} differ in size"
            )
        return source, one_bucket(source, settings.batch_size)
    sizes = read_sizes(source, settings.directory)
    check_share(sizes.faults, len(source), settings.max_bad_share, sizes.listed)
    fitting = dataclasses.replace(settings.bucketing.fitting, resize=not getattr(source, "latents", False))
    how = dataclasses.replace(settings.bucketing, fitting=fitting)
    return source, make_plan(source, sizes, how, settings.directory)
