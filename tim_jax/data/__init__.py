"""From sources of images to global batches. A new source is one file and one line in SOURCES."""

import difflib

from tim_jax.data.batches import global_batches, iterate
from tim_jax.data.digits import digits
from tim_jax.data.sources import Source, arrays, normalise

SOURCES = {
    "digits": digits,
}


def open_source(name: str, directory: str, split: str) -> Source:
    """The split of a named source, with its files below `directory`; embedded sources are written there on first use.

    Raises ValueError for a name that is not in SOURCES and for a split that the source does not have.
    """
    if name not in SOURCES:
        near = difflib.get_close_matches(str(name), SOURCES, n=1, cutoff=0.0)[0]
        raise ValueError(f"source {name!r}: no such source, nearest is {near!r} (of {', '.join(sorted(SOURCES))})")
    return SOURCES[name](directory, split)


__all__ = ["SOURCES", "Source", "arrays", "global_batches", "iterate", "normalise", "open_source"]
