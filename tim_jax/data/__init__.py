"""From sources of images to global batches. A new source is one file and one line in SOURCES."""

import difflib
from typing import Any

from tim_jax.data.batches import Order, ahead, global_batches, iterate
from tim_jax.data.buckets import Fitting, Grid
from tim_jax.data.faults import Account, BadRecord, TooManyBadRecords, watched
from tim_jax.data.fit import Look, cover
from tim_jax.data.plan import Bucket, Bucketing, BucketPlan, make_plan, one_bucket
from tim_jax.data.shard_files import write_shards
from tim_jax.data.sizes import read_sizes
from tim_jax.data.sources.base import Location, Source, arrays, normalise
from tim_jax.data.sources.digits import digits
from tim_jax.data.sources.folder import open_folder
from tim_jax.data.sources.latents import open_latents
from tim_jax.data.sources.manifest import open_manifest
from tim_jax.data.sources.mixture import Mixture
from tim_jax.data.sources.parquet import open_parquet
from tim_jax.data.sources.photos import photos
from tim_jax.data.sources.shards import open_shards
from tim_jax.data.sources.tar import open_tar
from tim_jax.data.sources.tfds import open_tfds
from tim_jax.system import files

# name -> (Location -> Source)
SOURCES = {
    "digits": digits,
    "photos": photos,
    "folder": open_folder,
    "manifest": open_manifest,
    "tar": open_tar,
    "parquet": open_parquet,
    "latents": open_latents,
    "shards": open_shards,
    "tfds": open_tfds,
}


def open_source(name: str, directory: str, split: str = "train", **where: Any) -> Source:
    """The split of a named source, with its files below `directory`; embedded sources are written there on first use.

    where: `path`, `channels` and `num_classes` of Location.
    Raises ValueError for a name that is not in SOURCES, for a split that the source does not have, and for a directory
    in object storage.
    """
    if not files.is_local(directory):
        raise ValueError(f"loader.directory is {directory!r}; it must be on a local disk: its files are memory-mapped")
    if name not in SOURCES:
        near = difflib.get_close_matches(str(name), SOURCES, n=1, cutoff=0.0)[0]
        raise ValueError(f"source {name!r}: no such source, nearest is {near!r} (of {', '.join(sorted(SOURCES))})")
    return SOURCES[name](Location(directory, split, **where))


__all__ = [
    "SOURCES", "Account", "BadRecord", "Bucket", "Bucketing", "Fitting", "Grid", "Location", "Look", "Mixture", "Order",
    "BucketPlan", "Source", "TooManyBadRecords", "ahead", "arrays", "cover", "global_batches", "iterate", "make_plan",
    "normalise", "one_bucket", "open_source", "read_sizes", "watched", "write_shards",
]  # fmt: skip
