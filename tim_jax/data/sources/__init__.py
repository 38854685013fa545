"""The sources by name. A new one is a file beside this one, with a function Location -> Source, and one line here."""

import difflib
import importlib
from collections.abc import Callable
from typing import Any

from tim_jax.data.sources.base import Location, Source
from tim_jax.data.splits import part_of
from tim_jax.system import files

# name -> the function that opens it, or where that is: such a module is imported when its source is first opened, since
# some need large packages.
SOURCES: dict[str, str | Callable[[Location], Source]] = {
    "digits": "tim_jax.data.sources.digits.open_digits",
    "photos": "tim_jax.data.sources.photos.open_photos",
    "emoji": "tim_jax.data.sources.emoji.open_emoji",
    "folder": "tim_jax.data.sources.folder.open_folder",
    "manifest": "tim_jax.data.sources.manifest.open_manifest",
    "tar": "tim_jax.data.sources.tar.open_tar",
    "parquet": "tim_jax.data.sources.parquet.open_parquet",
    "latents": "tim_jax.data.sources.latents.open_latents",
    "shards": "tim_jax.data.sources.shards.open_shards",
    "tfds": "tim_jax.data.sources.tfds.open_tfds",
    "preferences": "tim_jax.data.sources.preferences.open_preferences",
}


def open_source(name: str, directory: str, split: str = "train", section: str = "data", **more: Any) -> Source:
    """Opens a source; the embedded ones are written below `directory` on first use.

    Args:
        name: a key of SOURCES.
        directory: a folder on a local disk, see Location.
        split: the part of the data, such as "train".
        section: the section of the configuration that names the source, for messages.
        **more: `path`, `channels`, `size`, `num_classes`, `images`, `held_out_share`, `captions` and `split_key` of
            Location.

    Raises:
        UnknownSplit: the data has no such part.
        ValueError: there is no such source, the data is not what the source reads, or `directory` is in
            object storage.
    """
    if not files.is_local(directory):
        raise ValueError(f"loader.directory is {directory!r}; it must be on a local disk: its files are memory-mapped")
    if name not in SOURCES:
        near = difflib.get_close_matches(str(name), SOURCES, n=1, cutoff=0.0)[0]
        known = ", ".join(sorted(SOURCES))
        raise ValueError(f"{section}.source is {name!r}; it must be one of {known} (the nearest is {near!r})")
    at = Location(directory, split, key=f"{section}.path", **more)
    opens = SOURCES[name]
    if isinstance(opens, str):
        module, function = opens.rsplit(".", 1)
        opens = getattr(importlib.import_module(module), function)
    return part_of(opens(at), at)
