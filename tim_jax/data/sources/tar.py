"""Tar shards in the WebDataset layout: files of one stem are one example, an image with .txt, .json or .cls.

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

from tim_jax.data import tables
from tim_jax.data.bad_records import BadRecord
from tim_jax.data.sources.base import EncodedImages, Location, Raw, digest, stamp
from tim_jax.data.sources.folder import IMAGES
from tim_jax.system.progress import Bar

KINDS = ("image", "cls", "txt", "json")
COLUMNS = {"shard": np.int32, "stem": np.uint8, "stem_end": np.int64} | {
    f"{kind}_{what}": np.int64 for kind in KINDS for what in ("start", "bytes")
}


def shards_in(root: epath.Path, endings: tuple[str, ...]) -> list[epath.Path]:
    """The sorted files of a folder that have one of the endings; the root alone if it is a file."""
    return [root] if not root.is_dir() else sorted(p for p in root.iterdir() if p.name.lower().endswith(endings))


def require_shards(at: Location, endings: tuple[str, ...]) -> list[epath.Path]:
    """As `shards_in`, of `at.root`. Raises ValueError if there are none."""
    found = shards_in(at.root, endings)
    if not found:
        raise ValueError(f"{at.key} is {at.path!r}; it must hold shards that end in {' or '.join(endings)}")
    return found


def state_of(shards: list[epath.Path]) -> list[tuple]:
    """(name, bytes, time of the last change) of each shard."""
    return [(path.name, *stamp(path)) for path in shards]


def _kind(ending: str) -> str | None:
    return "image" if f".{ending}" in IMAGES else ending if ending in KINDS[1:] else None


def _examples_in(path: epath.Path) -> tuple[list[tuple[str, dict[str, tuple[int, int]]]], bool]:
    """([(stem, {kind: (start, bytes)})], whether the shard is whole) of one shard."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    with path.open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as shard:
                for member in shard:
                    folder, slash, base = member.name.rpartition("/")
                    stem, _, ending = base.partition(".")
                    kind = _kind(ending.lower())
                    if member.isfile() and kind is not None and not base.startswith("."):
                        found.setdefault(folder + slash + stem, {})[kind] = (member.offset_data, member.size)
                end = shard.offset
            file.seek(end)
            whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)  # the mark of an archive's end
        except (tarfile.TarError, OSError, EOFError, ValueError):
            whole = False
    return list(found.items()), whole


def index_shards(at: Location) -> str:
    """Finds where every file of all shards lies, once for each state of the shards.

    Args:
        at: its path is a shard or a folder of shards, and the table is written below its directory.

    Returns:
        The folder of the table of examples.

    Raises:
        ValueError: there are no shards.
    """
    root, shards = at.root, require_shards(at, (".tar",))
    state = state_of(shards)
    folder = epath.Path(at.directory).expanduser() / f"tar-{digest('tar 1', str(root), state)}"
    if tables.exists(folder):
        return str(folder)
    ends = {"cls": False, "caption": False}
    with tables.writing(folder, **COLUMNS) as writer:
        for number, path in enumerate(Bar(shards, desc=f"index of {root.name}", unit=" shards")):
            found, whole = _examples_in(path)
            for stem, files in found + ([] if whole else [("", {})]):
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
    return str(folder)


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
class TarSource(EncodedImages):
    """The examples of tar shards. A shard that is cut short has one bad record in place of what is missing.

    Attributes:
        root: the shard, or the folder of shards.
        index: the table of examples, see `index_shards`.
        num_classes: labels lie below it; 0 says that labels are not read.
        channels: channels of the images to make.
    """

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
    def image_shape(self) -> tuple[int | None, int | None, int]:
        return None, None, self.channels

    def __len__(self) -> int:
        return len(self._table["shard"])

    def _shard(self, i: int) -> epath.Path:
        return epath.Path(self._table.meta["shards"][int(self._table["shard"][i])])

    def identity(self, i: int) -> str:
        return f"{self._shard(i).name}:{tables.text_at(self._table, 'stem', i)}"

    def _file(self, i: int, kind: str, max_bytes: int = -1) -> bytes | None:
        """The file of example i of one of KINDS, or its first `max_bytes`; None if there is none. Raises BadRecord."""
        start, size = int(self._table[f"{kind}_start"][i]), int(self._table[f"{kind}_bytes"][i])
        if start < 0:
            return None
        wanted = size if max_bytes < 0 else min(size, max_bytes)
        found = _read(self._shard(i), start, wanted)
        if len(found) < wanted:
            raise BadRecord("truncated", "the shard ends before this file does")
        return found

    def raw(self, i: int, max_bytes: int = -1) -> Raw:
        image = self._file(i, "image", max_bytes)
        if image is None:
            stem = tables.text_at(self._table, "stem", i)
            raise BadRecord("missing", "no image") if stem else BadRecord("shard", "cut short")
        beside = self._file(i, "json")
        about = _json(beside) if beside is not None else {}
        label_file, text_file = self._file(i, "cls"), self._file(i, "txt")
        try:
            label = about.get("label") if label_file is None else int(label_file.decode())
            text = about.get("captions", about.get("caption")) if text_file is None else text_file.decode()
        except UnicodeDecodeError:
            raise BadRecord("metadata", "text that is not UTF-8") from None
        except ValueError:
            raise BadRecord("label", f"{label_file!r:.60}, must be a whole number") from None
        return Raw(image, label, text)

    def fingerprint(self) -> str:
        return digest("tar", self.root, self._table.meta["state"], len(self), self.num_classes, self.channels)


def open_tar(at: Location) -> TarSource:
    """Opens the examples of tar shards.

    Args:
        at: its path is a .tar file, or a folder of such files.

    Raises:
        ValueError: there are no shards, or they hold nothing.
    """
    source = TarSource(str(at.root), index_shards(at), at.num_classes, at.channels)
    if not len(source):
        raise ValueError(f"{at.key} is {at.path!r}; its shards must hold at least one image")
    return source
