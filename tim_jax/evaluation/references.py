"""References: summaries of real images, stored with a fingerprint of what they are of, and refused where it differs.

A fingerprint is a dict of texts and numbers: data, split, images, size, preprocessing, features, rows.
"""

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from tim_jax.evaluation.kept import KEPT, Need, Summary
from tim_jax.system import files

FINGERPRINT = "fingerprint"


@dataclasses.dataclass(frozen=True)
class Reference:
    fingerprint: Mapping[str, Any]
    summary: Summary


def same(found: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    """Raises ValueError, in one line that names what differs, unless two fingerprints are equal."""
    for key in [*expected, *(key for key in found if key not in expected)]:
        if found.get(key) != expected.get(key):
            raise ValueError(
                f"{what} is of {key} {found.get(key)!r}, not {expected.get(key)!r}: they cannot be compared"
            )


def name_of(fingerprint: Mapping[str, Any]) -> str:
    """A file name for a reference, by its fingerprint."""
    text = json.dumps(fingerprint, sort_keys=True)
    return f"reference-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"


def write(path: Any, reference: Reference) -> None:
    """Writes a reference, in one move, as npz without pickle."""
    arrays = {FINGERPRINT: np.array(json.dumps(reference.fingerprint))}
    for (output, kind), value in reference.summary.items():
        arrays |= {f"{output}/{kind}/{field}": array for field, array in value._asdict().items()}
    data = io.BytesIO()
    np.savez(data, **arrays)
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, data.getvalue())


def read(path: Any) -> Reference:
    """A reference that `write` wrote. Raises ValueError, in one line, for a file that is not one, or is damaged."""
    path = epath.Path(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            fingerprint = json.loads(str(stored[FINGERPRINT]))
            arrays = {name: stored[name] for name in stored.files if name != FINGERPRINT}
        summary = {}
        for output, kind in {tuple(name.split("/")[:2]) for name in arrays}:
            value = KEPT[kind].value
            fields = (arrays[f"{output}/{kind}/{field}"] for field in value._fields)
            summary[output, kind] = value(*(array if array.ndim else array.item() for array in fields))
        return Reference(fingerprint, summary)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a reference, or damaged ({type(error).__name__}: {error})") from None


def cached(path: epath.Path, fingerprint: Mapping[str, Any], needs: Iterable[Need]) -> Reference | None:
    """The reference at a path if it is there, whole, of this fingerprint and with all that is needed."""
    try:
        found = read(path)
        same(found.fingerprint, fingerprint, str(path))
    except ValueError:
        return None
    return found if set(needs) <= found.summary.keys() else None
