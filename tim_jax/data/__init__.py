"""From sources of images to global batches. A new source is one file and one line in SOURCES."""

import difflib

from tim_jax.data.batches import Order, ahead, global_batches, iterate
from tim_jax.data.buckets import Fitting, Grid
from tim_jax.data.digits import digits
from tim_jax.data.faults import Account, BadRecord, TooManyBadRecords, watched
from tim_jax.data.fit import Look
from tim_jax.data.plan import Bucket, Bucketing, Plan, make_plan, one_bucket
from tim_jax.data.sizes import read_sizes
from tim_jax.data.sources import Location, Source, arrays, normalise
from tim_jax.data.tfds_source import open_tfds

# name -> (Location -> Source)
SOURCES = {
    "digits": digits,
    "tfds": open_tfds,
}


def open_source(name: str, directory: str, split: str = "train", path: str = "", channels: int = 3) -> Source:
    """The split of a named source, with its files below `directory`; embedded sources are written there on first use.

    path: of the data of other sources, or their name. channels: of the images to make of them, 1 or 3.
    Raises ValueError for a name that is not in SOURCES and for a split that the source does not have.
    """
    if name not in SOURCES:
        near = difflib.get_close_matches(str(name), SOURCES, n=1, cutoff=0.0)[0]
        raise ValueError(f"source {name!r}: no such source, nearest is {near!r} (of {', '.join(sorted(SOURCES))})")
    return SOURCES[name](Location(directory, split, path, channels))
