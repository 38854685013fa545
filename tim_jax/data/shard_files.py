"""The files of a folder of shards: written so that a kill leaves nothing half-done, and checked when they are read.

Beside each shard, rows-00000.array_record, lies its record, rows-00000.json: how many examples it has ("rows"), its
bytes and sha256, the size of every example, and the examples of the source that could not be used. When all shards are
there, `about.json` describes what their examples have in common and lists the files: it is the manifest. It is written
last, so that a folder that has it is whole.
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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy
from array_record.python import array_record_module

from tim_jax.data.bad_records import BadRecord
from tim_jax.data.decode import header_size
from tim_jax.system import files
from tim_jax.system.progress import Bar
from tim_jax.system.user_errors import few

ENDING = ".array_record"
ABOUT, SETTINGS, NULL, SIZES, BAD = "about.json", "settings.json", "null.safetensors", "sizes.npy", "bad_records.jsonl"
KEYS = ("num_classes", "captions", "latent_channels", "moments", "shards", "beside")
OPTIONAL = ("class_names", "noise")
LATENTS = ("latent", "moments", "pair")  # the names of what an example holds in place of an image file
EXAMPLES_PER_SHARD = 1000
# Approximate bytes besides images, latents and features: of an example (names, label, its line in the shard's record)
# and of a shard.
EXAMPLE_OVERHEAD = 512
SHARD_OVERHEAD = 2**17
NAMED_FILES = 4  # that an error names at most


def pack(example: dict[str, Any]) -> bytes:
    """Packs an example as a record, which is safetensors.

    Args:
        example: one of `image`, the bytes of an image file, `latent` (2, C, h, w), `moments` (2, 2 C, h, w) and `pair`
            (2, C, h, w); and where there are any `label`, `captions`, `texts`, features (L, T) for each caption, and
            `features` (2, rows, columns, Z). See sources/shards.py.
    """
    arrays = {name: np.ascontiguousarray(value) for name, value in example.items() if isinstance(value, np.ndarray)}
    if "image" in example:
        arrays["image"] = np.frombuffer(example["image"], np.uint8)
    if "captions" in example:
        arrays["captions"] = np.frombuffer(json.dumps(list(example["captions"])).encode(), np.uint8)
    if "label" in example:
        arrays["label"] = np.array([example["label"]])  # of its own type: what is not whole is told when it is read
    if "texts" in example:
        arrays["text"] = np.concatenate(example["texts"]).astype(ml_dtypes.bfloat16)
        arrays["lengths"] = np.array([len(text) for text in example["texts"]], np.int32)
    return safetensors.numpy.save(arrays)


def size_of(example: dict[str, Any]) -> tuple[int, int]:
    """The (height, width) of an example that `pack` takes; zeros for an image that cannot be read."""
    if "image" not in example:
        return next(example[name].shape[2:] for name in LATENTS if name in example)
    try:
        return header_size(io.BytesIO(example["image"]))
    except BadRecord:
        return 0, 0


def describe_example(example: dict[str, Any], num_classes: int) -> dict[str, Any]:
    """What `about.json` says of all examples, judging by one of them; num_classes: their labels lie below it."""
    moments, captions = "moments" in example, "captions" in example
    channels = next((example[name].shape[1] for name in LATENTS if name in example), 0) // (2 if moments else 1)
    about = {"num_classes": num_classes, "captions": captions, "latent_channels": int(channels), "moments": moments}
    return about | ({"noise": True} if "pair" in example else {})


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Yields the path of a new file, which is moved to `path` when the block ends, whole or not at all.

    A file that a killed process left is overwritten by the next try.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def describe_file(path: Path) -> dict[str, Any]:
    """The {"name", "bytes", "sha256"} of a file."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": found}


def shard_path(folder: Path, number: int) -> Path:
    """The path of shard `number` of a folder."""
    return folder / f"rows-{number:05d}{ENDING}"


def write_shard(
    folder: Path, number: int, examples: Iterable[dict[str, Any]], bad: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """Writes a shard and then its record.

    Args:
        folder: of all shards.
        number: of this shard.
        examples: see `pack`.
        bad: lines for the list of bad records, of examples of the source that could not be used.

    Returns:
        The record.
    """
    path = shard_path(folder, number)
    sizes: list[list[int]] = []
    with appearing(path) as new:
        writer = array_record_module.ArrayRecordWriter(str(new), "group_size:1")
        for example in examples:
            writer.write(pack(example))
            sizes.append([int(side) for side in size_of(example)])
        writer.close()
        record = describe_file(new) | {"name": path.name, "rows": len(sizes), "sizes": sizes, "bad": list(bad)}
    with appearing(path.with_suffix(".json")) as new:
        new.write_text(json.dumps(record) + "\n")
    return record


def read_record(folder: Path, number: int) -> dict[str, Any] | None:
    """The record of a shard that is there, at the size that the record says; None for one that is still to be made."""
    path = shard_path(folder, number)
    try:
        record = json.loads(path.with_suffix(".json").read_bytes())
        return record if path.stat().st_size == record["bytes"] else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def read_verified_record(folder: Path, number: int) -> dict[str, Any] | None:
    """As `read_record`, of a shard that also has the checksum that the record says."""
    record = read_record(folder, number)
    whole = record is not None and describe_file(shard_path(folder, number))["sha256"] == record["sha256"]
    return record if whole else None


def finish(folder: Path, count: int, about: dict[str, Any], null: dict[str, np.ndarray] | None = None) -> dict:
    """Writes what all shards have in common, `about.json` last.

    Args:
        folder: of the shards.
        count: how many there are.
        about: what their examples have in common, see `describe_example`.
        null: `text` (M, T) and `mask` (M,) of the empty prompt, for examples with text features.

    Returns:
        The content of `about.json`.

    Raises:
        ValueError: a shard is not there, or all are empty.
    """
    shards: list[dict[str, Any]] = []
    bad: list[dict[str, Any]] = []
    sizes = [np.zeros((0, 2), np.int32)]
    for number in range(count):
        record = read_record(folder, number)
        if record is None:
            raise ValueError(f"folder {str(folder)!r}: {shard_path(folder, number).name} is not there; start again")
        sizes.append(np.array(record["sizes"], np.int32).reshape(-1, 2))
        bad += record["bad"]
        shards.append({key: record[key] for key in ("name", "rows", "bytes", "sha256")})
    examples = sum(shard["rows"] for shard in shards)
    if not examples:
        raise ValueError(f"folder {str(folder)!r}: there are no examples to write; there must be at least one")
    lines = [json.dumps(line) + "\n" for line in bad]
    beside = {SIZES: _npy(np.concatenate(sizes)), BAD: "".join(lines).encode()}
    if null:
        beside[NULL] = safetensors.numpy.save(null)
    for name, content in beside.items():
        with appearing(folder / name) as new:
            new.write_bytes(content)
    about = about | {
        "rows": examples,
        "bad": dict(sorted(Counter(line["reason"] for line in bad).items())),
        "shards": shards,
        "beside": [describe_file(folder / name) for name in beside],
    }
    with appearing(folder / ABOUT) as new:
        new.write_text(json.dumps(about, indent=1) + "\n")
    return about


def write_shards(
    folder: Any,
    examples: Iterable[dict[str, Any]],
    num_classes: int = 0,
    null: dict[str, np.ndarray] | None = None,
    examples_per_shard: int = EXAMPLES_PER_SHARD,
) -> None:
    """Writes examples as shards into a new folder, which appears when all is written.

    Args:
        folder: on a local or mounted disk.
        examples: see `pack`.
        num_classes: labels lie below it; 0 if there are none.
        null: `text` (M, T) and `mask` (M,) of the empty prompt, for examples with text features.
        examples_per_shard: of all shards but the last.

    Raises:
        ValueError: the folder exists or is in object storage, or there are no examples.
    """
    check_local("folder", folder)
    folder, stream = Path(folder).expanduser(), iter(examples)
    if folder.exists():
        raise ValueError(f"folder {str(folder)!r}: it exists, but must be new")
    unfinished = folder.parent / f"{folder.name}.unfinished-{uuid.uuid4().hex[:8]}"
    unfinished.mkdir(parents=True)
    try:
        count = 0
        about: dict[str, Any] = {}
        while chunk := list(itertools.islice(stream, examples_per_shard)):
            about = about or describe_example(chunk[0], num_classes)
            write_shard(unfinished, count, chunk)
            count += 1
        finish(unfinished, count, about, null)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def check_local(name: str, folder: Any) -> None:
    """Raises ValueError for a folder in object storage; `name` is the argument that gave it."""
    if not files.is_local(folder):
        raise ValueError(f"{name} {str(folder)!r}: ArrayRecord files are written to a local or mounted disk only")


def read_about(folder: Path) -> dict[str, Any]:
    """Reads `about.json`. Raises ValueError if it is not there, or does not describe shards."""
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        examples = sum(shard["rows"] for shard in about["shards"])
        there = {key: about[key] for key in OPTIONAL if about.get(key)}
        return {"rows": examples} | {key: about[key] for key in KEYS} | there
    except (FileNotFoundError, NotADirectoryError):
        if (folder / SETTINGS).exists():
            problem = "it is not finished: start the command that makes it again"
        else:
            problem = f"it must be a folder that python -m tim_jax.encode or tim_jax.pairs made, with {ABOUT}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        problem = f"its {ABOUT} must say what its examples have ({type(error).__name__}: {error})"
    raise ValueError(f"{folder}: {problem}")


def check_sizes(folder: Path) -> dict[str, Any]:
    """Reads `about.json`. Raises ValueError if a file that it lists is not there, or has another size."""
    about = read_about(folder)
    wrong = [entry["name"] for entry in _listed_files(about) if _bytes(folder / entry["name"]) != entry["bytes"]]
    if wrong:
        listed = few(wrong, NAMED_FILES)
        raise ValueError(f"{folder}: not there, or changed since it was written (another size): {listed}")
    return about


def verify(folder: Path) -> dict[str, Any]:
    """Reads `about.json` and checks every byte of all files. Raises ValueError if one has another checksum."""
    about = check_sizes(folder)
    entries = Bar(_listed_files(about), desc=f"checksums of {folder.name}", unit=" files")
    wrong = [entry["name"] for entry in entries if describe_file(folder / entry["name"])["sha256"] != entry["sha256"]]
    if wrong:
        raise ValueError(
            f"{folder}: changed since it was written (another checksum): {few(wrong, NAMED_FILES)}; delete what is "
            "named and start the command that made it again"
        )
    return about


def _listed_files(about: dict[str, Any]) -> list[dict[str, Any]]:
    return about["shards"] + about["beside"]


def _bytes(path: Path) -> int:
    """The size of a file, -1 if it is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _npy(array: np.ndarray) -> bytes:
    with io.BytesIO() as file:
        np.save(file, array)
        return file.getvalue()
