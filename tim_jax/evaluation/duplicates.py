"""Images that a set holds more than once, and held-out images that are among those trained on, by digests of pixels.

Two images are the same if all their values are, at the size at which images are compared: a copy under another name is
found, one that was compressed again is not.
"""

import hashlib
from collections.abc import Mapping

import numpy as np

from tim_jax.evaluation.summaries import Digests, Summary

DIGESTS = ("images", "digests")  # the summary that a reference holds them in
WORDS = 2  # of 32 bits: among ten million images two that differ are taken for one with a chance of 1 in 300,000


def digests(images: np.ndarray) -> np.ndarray:
    """A digest of each image (n, h, w, C), uint32 (n, WORDS)."""
    found = [hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=4 * WORDS).digest() for image in images]
    return np.frombuffer(b"".join(found), np.uint32).reshape(len(images), WORDS)


def count(summaries: Mapping[str, Summary]) -> dict[str, int]:
    """Counts duplicates.

    Args:
        summaries: of the training part, "", and of the held-out part, if there is one, by their suffixes.

    Returns:
        {"training": images, "training_repeats": those that are the same as an earlier one, "held_out",
        "held_out_repeats", "held_out_in_training": held-out images that are in the training part}; what is not known is
        left out.
    """
    known = {suffix: _rows(summary[DIGESTS]) for suffix, summary in summaries.items() if DIGESTS in summary}
    found: dict[str, int] = {}
    for suffix, rows in known.items():
        name = suffix.removeprefix("_") or "training"
        found |= {name: len(rows), f"{name}_repeats": len(rows) - len(np.unique(rows))}
    if "" in known:
        for suffix in known.keys() - {""}:
            found[f"{suffix.removeprefix('_')}_in_training"] = int(np.isin(known[suffix], known[""]).sum())
    return found


def sentence(found: Mapping[str, int]) -> str:
    """What was counted, in a sentence; "" where nothing is known."""
    parts = []
    for name, what in (("training", "training"), ("held_out", "held-out")):
        if name in found:
            parts.append(f"{found[f'{name}_repeats']:,} of {found[name]:,} {what} images are copies of an earlier one")
    if "held_out_in_training" in found:
        parts.append(f"{found['held_out_in_training']:,} held-out images are in the training part")
    return f"Exact duplicates: {', '.join(parts)}." if parts else ""


def warning(found: Mapping[str, int]) -> str:
    """What to warn of; "" for nothing."""
    if not found.get("held_out_in_training"):
        return ""
    return (
        f"{found['held_out_in_training']:,} of {found['held_out']:,} held-out images are in the training part, pixel "
        "by pixel: figures against the held-out part are too good for what is new to the model"
    )


def _rows(of: Digests) -> np.ndarray:
    """(n,) uint64."""
    return np.ascontiguousarray(of.values, np.uint32).view(np.uint64)[:, 0]
