"""Tar shards in the WebDataset layout: files of one stem are one row, an image with .txt, .json or .cls beside it.

An index of where each file lies is built once. The label is the number in .cls, or `label` in .json; captions are the
text of .txt, or `captions` or `caption` in .json.
"""

import dataclasses
import functools
import json
import tarfile
from typing import Any

import numpy as np
from etils import epath
from tqdm import tqdm

from tim_jax.data import tables
from tim_jax.data.faults import BadRecord
from tim_jax.data.sources.base import Location, Raw, Readable, digest, stamp
from tim_jax.data.sources.folder import IMAGES

KINDS = ("image", "cls", "txt", "json")
COLUMNS = {"shard": np.int32, "stem": np.uint8, "stem_end": np.int64} | {
    f"{kind}_{what}": np.int64 for kind in KINDS for what in ("start", "bytes")
}


def shards_of(root: epath.Path, endings: tuple[str, ...]) -> list[epath.Path]:
    """The shards of a folder that end so, in order, or the one that is named. Raises ValueError if there are none."""
    named = [root] if not root.is_dir() else sorted(p for p in root.iterdir() if p.name.lower().endswith(endings))
    if not named:
        raise ValueError(f"data.path is {str(root)!r}; it must hold shards that end in {' or '.join(endings)}")
    return named


def state_of(shards: list[epath.Path]) -> list[tuple]:
    """What changes when shards do."""
    return [(path.name, *stamp(path)) for path in shards]


def _kind(ending: str) -> str | None:
    return "image" if f".{ending}" in IMAGES else ending if ending in KINDS[1:] else None


def _rows(path: epath.Path) -> tuple[list[tuple[str, dict[str, tuple[int, int]]]], bool]:
    """([(stem, {kind: (start, bytes)})], whether the shard is whole) of one shard."""
    rows: dict[str, dict[str, tuple[int, int]]] = {}
    with path.open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as shard:
                for member in shard:
                    folder, slash, base = member.name.rpartition("/")
                    stem, _, ending = base.partition(".")
                    kind = _kind(ending.lower())
                    if member.isfile() and kind is not None and not base.startswith("."):
                        rows.setdefault(folder + slash + stem, {})[kind] = (member.offset_data, member.size)
                end = shard.offset
            file.seek(end)
            whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)  # the mark of an archive's end
        except (tarfile.TarError, OSError, EOFError, ValueError):
            whole = False
    return list(rows.items()), whole


def index_shards(root: epath.Path, directory: str) -> epath.Path:
    """The table of all rows of all shards, written below `directory` once for each state of the shards."""
    shards = shards_of(root, (".tar",))
    state = state_of(shards)
    folder = epath.Path(directory).expanduser() / f"tar-{digest('tar 1', str(root), state)}"
    if tables.exists(folder):
        return folder
    ends = {"cls": False, "caption": False}
    with tables.writing(folder, **COLUMNS) as writer:
        for number, path in enumerate(tqdm(shards, desc=f"index of {root.name}", unit=" shards")):
            rows, whole = _rows(path)
            for stem, files in rows + ([] if whole else [("", {})]):
                tables.append_text(writer, "stem", stem)
                writer.append(shard=number)
                for kind in KINDS:
                    start, size = files.get(kind, (-1, -1))
                    writer.append(**{f"{kind}_start": start, f"{kind}_bytes": size})
                ends["cls"] |= "cls" in files
                ends["caption"] |= "txt" in files
                if "json" in files and not (ends["cls"] and ends["caption"]):
                    beside = _json(_read(path, *files["json"]), or_else={})
                    ends["cls"] |= "label" in beside
                    ends["caption"] |= bool({"caption", "captions"} & set(beside))
        writer.meta |= {"shards": [str(path) for path in shards], "state": digest(state)} | ends
    return folder


def _read(path: epath.Path, start: int, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)
    except OSError as error:
        raise BadRecord("missing", str(error)) from None


def _json(encoded: bytes, or_else: dict | None = None) -> dict[str, Any]:
    try:
        found = json.loads(encoded)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return found
    if or_else is None:
        raise BadRecord("metadata", f"not a JSON object: {encoded[:60]!r}")
    return or_else


@dataclasses.dataclass(frozen=True)
class TarSource(Readable):
    """root: the shards or their folder. index: their table. num_classes: labels lie below it; 0: no labels.
    channels: of the images to make."""

    root: str
    index: str
    num_classes: int = 0
    channels: int = 3

    @functools.cached_property
    def _table(self) -> tables.Table:
        return tables.Table(epath.Path(self.index))

    @property
    def name(self) -> str:
        return epath.Path(self.root).name

    @property
    def captions(self) -> bool:
        return self._table.meta["caption"]

    @property
    def image_shape(self) -> tuple[None, None, int]:
        return None, None, self.channels

    def __len__(self) -> int:
        return len(self._table["shard"])

    def _shard(self, i: int) -> epath.Path:
        return epath.Path(self._table.meta["shards"][int(self._table["shard"][i])])

    def identity(self, i: int) -> str:
        return f"{self._shard(i).name}:{tables.text_at(self._table, 'stem', i)}"

    def _part(self, i: int, kind: str, most: int = -1) -> bytes | None:
        start, size = int(self._table[f"{kind}_start"][i]), int(self._table[f"{kind}_bytes"][i])
        if start < 0:
            return None
        wanted = size if most < 0 else min(size, most)
        found = _read(self._shard(i), start, wanted)
        if len(found) < wanted:
            raise BadRecord("truncated", "the shard ends before this file does")
        return found

    def raw(self, i: int, most: int = -1) -> Raw:
        image = self._part(i, "image", most)
        if image is None:
            stem = tables.text_at(self._table, "stem", i)
            raise BadRecord("missing", "no image") if stem else BadRecord("shard", "cut short")
        beside = self._part(i, "json")
        about = _json(beside) if beside is not None else {}
        label, text = self._part(i, "cls"), self._part(i, "txt")
        try:
            label = about.get("label") if label is None else int(label.decode())
            text = about.get("captions", about.get("caption")) if text is None else text.decode()
        except UnicodeDecodeError:
            raise BadRecord("metadata", "text that is not UTF-8") from None
        except ValueError:
            raise BadRecord("label", f"{label!r:.60}, must be a whole number") from None
        return Raw(image, label, text)

    def fingerprint(self) -> str:
        return digest("tar", self.root, self._table.meta["state"], len(self), self.num_classes, self.channels)


def open_tar(at: Location) -> TarSource:
    """The rows of a .tar file, or of all of them in a folder. Raises ValueError."""
    source = TarSource(str(at.root), str(index_shards(at.root, at.directory)), at.num_classes, at.channels)
    if not len(source):
        raise ValueError(f"data.path is {at.path!r}; its shards hold no images, must hold some")
    return source
