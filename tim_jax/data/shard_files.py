"""The files of a folder of shards: written so that a kill leaves nothing half-done, and checked when they are read.

Beside each shard, rows-00000.array_record, lies its record, rows-00000.json: rows, bytes, sha256, the size of every row
and the source's rows that could not be used. When all shards are there, `about.json` says what their rows have and
lists them, which is the manifest; it comes last, so that a folder with it is whole.
"""

import contextlib
import hashlib
import io
import itertools
import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy
from array_record.python import array_record_module
from tqdm import tqdm

from tim_jax.data.decode import header_size
from tim_jax.data.faults import BadRecord
from tim_jax.system import files

ENDING = ".array_record"
ABOUT, SETTINGS, NULL, SIZES, BAD = "about.json", "settings.json", "null.safetensors", "sizes.npy", "bad_records.jsonl"
KEYS = ("num_classes", "captions", "latent_channels", "moments", "shards", "beside")
NUMBERS = ("latent", "moments", "pair")  # what a row holds that is no image file
ROWS_PER_SHARD = 1000
BESIDE = 512  # bytes of a row, about, that hold no numbers: names, label, its line in the shard's record
BLOCK = 2**17  # bytes of a shard, about, that hold no rows
SHOWN = 4  # files that an error names


def pack(row: dict[str, Any]) -> bytes:
    """A row as a record, which is safetensors.

    row: `image`, the bytes of an image file, or `latent` (2, C, h, w), or `moments` (2, 2 C, h, w), or `pair`
    (2, C, h, w); and where there are any `label`, `captions`, `texts`, features (L, T) for each caption, and `features`
    (2, rows, columns, Z).
    """
    arrays = {name: np.ascontiguousarray(value) for name, value in row.items() if isinstance(value, np.ndarray)}
    if "image" in row:
        arrays["image"] = np.frombuffer(row["image"], np.uint8)
    if "captions" in row:
        arrays["captions"] = np.frombuffer(json.dumps(list(row["captions"])).encode(), np.uint8)
    if "label" in row:
        arrays["label"] = np.array([row["label"]], np.int64)
    if "texts" in row:
        arrays["text"] = np.concatenate(row["texts"]).astype(ml_dtypes.bfloat16)
        arrays["lengths"] = np.array([len(text) for text in row["texts"]], np.int32)
    return safetensors.numpy.save(arrays)


def size_of(row: dict[str, Any]) -> tuple[int, int]:
    """(height, width) of a row that is to be packed; zeros for an image that cannot be read."""
    if "image" not in row:
        return next(row[name].shape[2:] for name in NUMBERS if name in row)
    try:
        return header_size(io.BytesIO(row["image"]))
    except BadRecord:
        return 0, 0


def what_rows_have(row: dict[str, Any], num_classes: int) -> dict[str, Any]:
    """What `about.json` says of all rows, by one of them."""
    moments, captions = "moments" in row, "captions" in row
    channels = next((row[name].shape[1] for name in NUMBERS if name in row), 0) // (2 if moments else 1)
    about = {"num_classes": num_classes, "captions": captions, "latent_channels": int(channels), "moments": moments}
    return about | ({"noise": True} if "pair" in row else {})


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """The path of a new file, which at the end is moved to `path`, whole or not at all. One that is left by a kill is
    written over by the next try."""
    new = path.with_name(f".{path.name}.new")
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def measured(path: Path) -> dict[str, Any]:
    """{"name", "bytes", "sha256"} of a file."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": found}


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"rows-{number:05d}{ENDING}"


def write_shard(folder: Path, number: int, rows: Iterable[dict[str, Any]], bad: list[dict[str, Any]] = ()) -> dict:
    """Writes rows as shard `number`, then its record, which is returned. bad: of rows that are not there, for it."""
    path, sizes = shard_path(folder, number), []
    with appearing(path) as new:
        writer = array_record_module.ArrayRecordWriter(str(new), "group_size:1")
        for row in rows:
            writer.write(pack(row))
            sizes.append([int(side) for side in size_of(row)])
        writer.close()
        record = measured(new) | {"name": path.name, "rows": len(sizes), "sizes": sizes, "bad": list(bad)}
    with appearing(path.with_suffix(".json")) as new:
        new.write_text(json.dumps(record) + "\n")
    return record


def recorded(folder: Path, number: int) -> dict[str, Any] | None:
    """The record of a shard that is there at the size that it says; None for one that is to be made."""
    path = shard_path(folder, number)
    try:
        record = json.loads(path.with_suffix(".json").read_bytes())
        return record if path.stat().st_size == record["bytes"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def kept(folder: Path, number: int) -> dict[str, Any] | None:
    """As `recorded`, of a shard that also has the checksum that its record says."""
    record = recorded(folder, number)
    whole = record is not None and measured(shard_path(folder, number))["sha256"] == record["sha256"]
    return record if whole else None


def finish(folder: Path, count: int, about: dict[str, Any], null: dict[str, np.ndarray] | None = None) -> dict:
    """Writes what `count` shards have in common, `about.json` last, and returns what that says.

    about: see `what_rows_have`. null: `text` (M, T) and `mask` (M,) of the empty prompt. Raises ValueError if a shard
    is not there, or all are empty.
    """
    shards, sizes, bad = [], [np.zeros((0, 2), np.int32)], []
    for number in range(count):
        record = recorded(folder, number)
        if record is None:
            raise ValueError(f"folder {str(folder)!r}: {shard_path(folder, number).name} is not there; start again")
        sizes.append(np.array(record["sizes"], np.int32).reshape(-1, 2))
        bad += record["bad"]
        shards.append({key: record[key] for key in ("name", "rows", "bytes", "sha256")})
    rows = sum(shard["rows"] for shard in shards)
    if not rows:
        raise ValueError(f"folder {str(folder)!r}: no rows to write, must have at least one")
    lines = [json.dumps(line) + "\n" for line in bad]
    beside = {SIZES: _npy(np.concatenate(sizes)), BAD: "".join(lines).encode()}
    if null:
        beside[NULL] = safetensors.numpy.save(null)
    for name, content in beside.items():
        with appearing(folder / name) as new:
            new.write_bytes(content)
    about = about | {
        "rows": rows,
        "bad": dict(sorted(Counter(line["reason"] for line in bad).items())),
        "shards": shards,
        "beside": [measured(folder / name) for name in beside],
    }
    with appearing(folder / ABOUT) as new:
        new.write_text(json.dumps(about, indent=1) + "\n")
    return about


def write_shards(
    folder: Any,
    rows: Iterable[dict[str, Any]],
    num_classes: int = 0,
    null: dict[str, np.ndarray] | None = None,
    rows_per_shard: int = ROWS_PER_SHARD,
) -> None:
    """Writes rows (see `pack`) as shards into a new folder, which appears when all is written.

    null: `text` (M, T) and `mask` (M,) of the empty prompt. Raises ValueError if the folder exists or there is no
    row, or for a folder in object storage.
    """
    check_local("folder", folder)
    folder, rows = Path(folder).expanduser(), iter(rows)
    if folder.exists():
        raise ValueError(f"folder {str(folder)!r}: exists, must be new")
    unfinished = folder.parent / f"{folder.name}.unfinished-{uuid.uuid4().hex[:8]}"
    unfinished.mkdir(parents=True)
    try:
        count, about = 0, {}
        while chunk := list(itertools.islice(rows, rows_per_shard)):
            about = about or what_rows_have(chunk[0], num_classes)
            write_shard(unfinished, count, chunk)
            count += 1
        finish(unfinished, count, about, null)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def check_local(name: str, folder: Any) -> None:
    """Raises ValueError for a folder, which `name` gave, in object storage."""
    if not files.is_local(folder):
        raise ValueError(f"{name} {str(folder)!r}: ArrayRecord files are written to a local or mounted disk only")


def read_about(folder: Path) -> dict[str, Any]:
    """What `about.json` says. Raises ValueError if it is not there or says something else."""
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        rows = sum(shard["rows"] for shard in about["shards"])
        return {"rows": rows} | {key: about[key] for key in KEYS} | ({"noise": True} if about.get("noise") else {})
    except FileNotFoundError:
        if (folder / SETTINGS).exists():
            told = "it is not finished: start the command that makes it again"
        else:
            told = f"it must be a folder that python -m tim_jax.encode or tim_jax.pairs made, with {ABOUT}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        told = f"its {ABOUT} must say what its rows have ({type(error).__name__}: {error})"
    raise ValueError(f"{folder}: {told}")


def check_sizes(folder: Path) -> dict[str, Any]:
    """What `about.json` says. Raises ValueError if a file that it lists is not there, or has another size."""
    about = read_about(folder)
    wrong = [entry["name"] for entry in _listed_files(about) if _bytes(folder / entry["name"]) != entry["bytes"]]
    if wrong:
        raise ValueError(f"{folder}: not there, or changed since it was written (another size): {_listed(wrong)}")
    return about


def verify(folder: Path) -> dict[str, Any]:
    """What `about.json` says, once every byte of all files is found to be as it says. Raises ValueError."""
    about = check_sizes(folder)
    entries = tqdm(_listed_files(about), desc=f"checksums of {folder.name}", unit=" files")
    wrong = [entry["name"] for entry in entries if measured(folder / entry["name"])["sha256"] != entry["sha256"]]
    if wrong:
        raise ValueError(
            f"{folder}: changed since it was written (another checksum): {_listed(wrong)}; delete what is named and "
            "start the command that made it again"
        )
    return about


def _listed_files(about: dict[str, Any]) -> list[dict[str, Any]]:
    return about["shards"] + about["beside"]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _npy(array: np.ndarray) -> bytes:
    with io.BytesIO() as file:
        np.save(file, array)
        return file.getvalue()
