"""From sources of images to global batches: sources/ -> sizes -> buckets -> plan -> batches (grain)."""

from tim_jax.data.annotations import NO_CAPTION, caption_at, first_caption, label_counts, proportional_labels
from tim_jax.data.arrays import load_arrays, normalise
from tim_jax.data.bad_records import Account, BadRecord, TooManyBadRecords, count_bad_records
from tim_jax.data.batches import Order, global_batches, iterate, prefetch_to_device
from tim_jax.data.buckets import Fitting, Grid
from tim_jax.data.fit import PIXELS_PER_TOKEN, Augmentation, resize_and_crop
from tim_jax.data.plan import Bucket, Bucketing, BucketPlan, make_plan, one_bucket
from tim_jax.data.shard_files import write_shards
from tim_jax.data.sizes import read_sizes
from tim_jax.data.sources import SOURCES, open_source
from tim_jax.data.sources.base import Location, Source
from tim_jax.data.sources.mixture import Mixture
from tim_jax.data.splits import HELD_OUT, NOT_TRAINED_ON, UnknownSplit

__all__ = [
    "HELD_OUT", "NOT_TRAINED_ON", "NO_CAPTION", "PIXELS_PER_TOKEN", "SOURCES", "Account", "Augmentation", "BadRecord",
    "Bucket", "BucketPlan", "Bucketing", "Fitting", "Grid", "Location", "Mixture", "Order", "Source",
    "TooManyBadRecords", "UnknownSplit", "caption_at", "count_bad_records", "first_caption", "global_batches",
    "iterate", "label_counts", "load_arrays", "make_plan", "normalise", "one_bucket", "open_source",
    "prefetch_to_device", "proportional_labels", "read_sizes", "resize_and_crop", "write_shards",
]  # fmt: skip
