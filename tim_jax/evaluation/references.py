"""References: summaries of real images, stored with a fingerprint of what they are of, and refused where it differs.

A fingerprint is a dict of texts and numbers: data, split, images (their number), size, preprocessing, features, and
rows, the most images of which raw features are stored.
"""

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from tim_jax.evaluation.summaries import KINDS, Need, Summary
from tim_jax.system import archives, files, lock

FINGERPRINT = "fingerprint"
LOCK = "references.lock"
# Kinds of summaries that have another name in files: raw features had it before, and splits of images in the order of
# their data set are no more what is compared.
STORED = {"raw": "rows", "splits": "shuffled_splits"}
KIND_OF = {STORED.get(kind, kind): kind for kind in KINDS}


@dataclasses.dataclass(frozen=True)
class Reference:
    """The summary of a set of real images, and the fingerprint that says which images and features it is of."""

    fingerprint: Mapping[str, Any]
    summary: Summary


def check_same(found: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    """Checks that two fingerprints are equal.

    Args:
        found: the fingerprint that is checked.
        expected: the fingerprint that it must equal.
        what: what the first one belongs to, for the message.

    Raises:
        ValueError: in one line that names what differs.
    """
    for key in [*expected, *(key for key in found if key not in expected)]:
        if found.get(key) != expected.get(key):
            raise ValueError(
                f"{what} is of {key} {found.get(key)!r}, not {expected.get(key)!r}: they cannot be compared"
            )


def name_of(fingerprint: Mapping[str, Any]) -> str:
    """Returns the name of the file in which the reference with this fingerprint is stored."""
    text = json.dumps(fingerprint, sort_keys=True)
    return f"reference-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"


def write(path: Any, reference: Reference) -> None:
    """Writes a reference in one move, as npz without pickle. Missing folders are made."""
    arrays = {FINGERPRINT: np.array(json.dumps(reference.fingerprint))}
    for (output, kind), value in reference.summary.items():
        prefix = f"{output}/{STORED.get(kind, kind)}"
        arrays |= {f"{prefix}/{field}": array for field, array in value._asdict().items()}
    data = io.BytesIO()
    np.savez(data, allow_pickle=False, **arrays)
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, data.getvalue())


def keep(path: Any, reference: Reference) -> None:
    """Writes a reference as `write` does, where that is possible: figures do not depend on it.

    What is stored of the same reference for other metrics stays, also where two evaluations write at a time.
    """
    path = epath.Path(path)
    try:
        with lock.locked(path.parent, name=LOCK, waiting=lambda who: None):
            stored = cached(path, reference.fingerprint, ())
            write(path, Reference(reference.fingerprint, (stored.summary if stored else {}) | reference.summary))
    except (OSError, ValueError) as error:
        logging.warning("the reference is not kept, and will be computed again: %s", error)


def read(path: Any) -> Reference:
    """Reads a reference that `write` wrote. Raises ValueError, in one line, for another file or a damaged one."""
    path = epath.Path(path)
    try:
        with path.open("rb") as file:
            archives.check(file)
            with np.load(file, allow_pickle=False) as stored:
                fingerprint = json.loads(str(stored[FINGERPRINT]))
                arrays = {name: stored[name] for name in stored.files if name != FINGERPRINT}
        summary = {}
        for output, name in {tuple(name.split("/")[:2]) for name in arrays}:
            if name == "splits":
                continue
            value = KINDS[KIND_OF[name]].value
            fields = (arrays[f"{output}/{name}/{field}"] for field in value._fields)
            summary[output, KIND_OF[name]] = value(*(array if array.ndim else array.item() for array in fields))
        return Reference(_by_todays_words(fingerprint), summary)
    except archives.DAMAGED as error:
        raise ValueError(f"{path}: not a reference, or damaged ({type(error).__name__}: {error})") from None


def _by_todays_words(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """A stored fingerprint. Images of data sets have always had 8 bits; version 0.1 did not say so of pixels."""
    channels = str(fingerprint.get("size")).split("x")[-1]
    if fingerprint.get("features") != "pixels" or channels not in ("1", "3"):
        return fingerprint
    return fingerprint | {"preprocessing": re.sub("none$", "8 bits", str(fingerprint.get("preprocessing")))}


def cached(path: epath.Path, fingerprint: Mapping[str, Any], needs: Iterable[Need]) -> Reference | None:
    """Looks for a reference that was computed before.

    Args:
        path: where it would be stored.
        fingerprint: of the reference that is wanted.
        needs: the (output, kind) pairs that its summary must have.

    Returns:
        The reference, or None if it is not there, damaged, of another fingerprint, or lacks something.
    """
    try:
        found = read(path)
        check_same(found.fingerprint, fingerprint, str(path))
    except ValueError:
        return None
    return found if set(needs) <= found.summary.keys() else None
