"""Tar shards in the WebDataset layout: files of one stem are one example, an image with .txt, .json or .cls.

An index of where each file lies is built once. Of several files of one name the last one counts, as when a shard is
unpacked, and links stand for the file that they lead to within their shard. The label is the number in .cls, or `label`
in .json; captions are the text of .txt, or `captions` or `caption` in .json.
"""

import dataclasses
import functools
import json
import os
import posixpath
import tarfile
from collections import Counter
from typing import Any

import numpy as np
from etils import epath

from tim_jax.data import tables
from tim_jax.data.bad_records import BadRecord
from tim_jax.data.decode import ENDINGS
from tim_jax.data.sources.base import EncodedImages, Location, Raw, digest
from tim_jax.data.splits import files_of_split
from tim_jax.data.stamps import stamp
from tim_jax.system.progress import Bar

KINDS = ("image", "cls", "txt", "json")
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
COLUMNS = {"shard": np.int32, "stem": np.uint8, "stem_end": np.int64} | {
    f"{kind}_{what}": np.int64 for kind in KINDS for what in ("start", "bytes")
}


Place = tuple[int, int]  # where a file starts in its shard, and its bytes


def state_of(shards: list[epath.Path], root: epath.Path) -> list[tuple]:
    """(path from the root, bytes, time of the last change) of each shard."""
    return [(path.name if path == root else str(path.relative_to(root)), *stamp(path)) for path in shards]


def check_plain(path: epath.Path, at: Location) -> None:
    """Raises ValueError for a shard that is compressed, whatever its name: no example of it can be read by itself."""
    with path.open("rb") as file:
        beginning = file.read(max(map(len, COMPRESSED)))
    for mark, name in COMPRESSED.items():
        if beginning.startswith(mark):
            raise ValueError(
                f"{at.key} is {at.path!r}; it must hold tar archives that are not compressed, and {path.name} is "
                f"{name}: unpack it first"
            )


def _kind(ending: str) -> str | None:
    return "image" if f".{ending}" in ENDINGS else ending if ending in KINDS[1:] else None


def _members_of(path: epath.Path, left_out: Counter[str]) -> tuple[dict[str, Place | str], bool]:
    """({name: where it is, or of a link the name that it leads to}, whether the shard is whole) of one shard."""
    members: dict[str, Place | str] = {}
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as shard:
                for member in shard:
                    if member.size < 0:  # the next header would be one before it
                        raise tarfile.ReadError("a size below 0")
                    name = _normal(member.name)
                    if member.isdir():
                        continue
                    left_out["earlier files of a name"] += name in members
                    if member.islnk():
                        members[name] = _normal(member.linkname)
                    elif member.issym():
                        members[name] = _normal(posixpath.join(posixpath.dirname(name), member.linkname))
                    elif member.isfile() and not member.issparse():
                        room = max(length - member.offset_data, 0)
                        members[name] = (member.offset_data, min(member.size, room + 1))  # as much as tells it is cut
                end = shard.offset
            file.seek(end)
            whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)  # the mark of an archive's end
        except Exception:  # of many kinds: of headers that lie, of names without end, of numbers that are none
            whole = False
    return members, whole


def _normal(name: str) -> str:
    """A name without "." and "..", in UTF-8: bytes that are not are written as \\xNN."""
    return posixpath.normpath(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _place(members: dict[str, Place | str], name: str) -> Place | None:
    """Where a member is, also one that links lead to; None if they lead to nothing or in a circle."""
    found, met = members.get(name), {name}
    while isinstance(found, str) and found not in met:
        met.add(found)
        found = members.get(found)
    return None if isinstance(found, str) else found


def _examples_in(path: epath.Path, left_out: Counter[str]) -> tuple[list[tuple[str, dict[str, Place]]], bool]:
    """([(stem, {kind: where it is})], whether the shard is whole) of one shard; adds to what is left out."""
    found: dict[str, dict[str, Place]] = {}
    members, whole = _members_of(path, left_out)
    for name in members:
        folder, slash, base = name.rpartition("/")
        stem, _, ending = base.partition(".")
        kind = _kind(ending.lower())
        if base.startswith("."):
            left_out["hidden files"] += 1
        elif kind is None:
            left_out["files of several endings" if "." in ending else f".{ending.lower()} files"] += 1
        elif (place := _place(members, name)) is None:
            left_out["links to nothing"] += 1
        else:
            example = found.setdefault(folder + slash + stem, {})
            left_out["further images of an example"] += kind == "image" and kind in example
            example[kind] = place
    return list(found.items()), whole


def index_shards(at: Location) -> str:
    """Finds where every file of all shards lies, once for each state of the shards.

    Args:
        at: its path is a shard or a folder of shards, and the table is written below its directory.

    Returns:
        The folder of the table of examples.

    Raises:
        ValueError: there are no shards, not the part of the data that is asked for, or a shard is compressed.
    """
    root, shards = at.root, files_of_split(at, (".tar",))
    state, left_out = state_of(shards, root), Counter[str]()
    folder = epath.Path(at.directory).expanduser() / f"tar-{digest('tar 2', str(root), state)}"
    if tables.exists(folder):
        return str(folder)
    for path in shards:
        check_plain(path, at)
    ends = {"cls": False, "caption": False}
    with tables.writing(folder, **COLUMNS) as writer:
        for number, path in enumerate(Bar(shards, desc=f"index of {root.name}", unit=" shards", delay=1)):
            found, whole = _examples_in(path, left_out)
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
        beside = {"left_out": {what: count for what, count in sorted(left_out.items()) if count}}
        writer.meta |= {"shards": [str(path) for path in shards], "state": digest(state)} | beside | ends
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
        with_captions: whether captions are read.
    """

    root: str
    index: str
    num_classes: int = 0
    channels: int = 3
    with_captions: bool = True

    @functools.cached_property
    def _table(self) -> tables.Table:
        return tables.Table(epath.Path(self.index))

    @property
    def name(self) -> str:
        return epath.Path(self.root).name

    @property
    def captions(self) -> bool:
        return self.with_captions and self._table.meta["caption"]

    @property
    def left_out(self) -> dict[str, int]:
        return self._table.meta["left_out"]

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
        label = self._label(i) if self.num_classes else None
        return Raw(image, label, self._captions(i) if self.captions else None)

    def _label(self, i: int) -> Any:
        """The label of example i as it was found. Raises BadRecord."""
        found = self._file(i, "cls")
        if found is None:
            return self._about(i).get("label")
        try:
            return float(found)
        except ValueError:
            raise BadRecord("label", f"{found!r:.60}, must be a whole number") from None

    def _captions(self, i: int) -> Any:
        """The captions of example i as they were found. Raises BadRecord."""
        found = self._file(i, "txt")
        if found is None:
            about = self._about(i)
            return about.get("captions", about.get("caption"))
        try:
            return found.decode()
        except UnicodeDecodeError:
            raise BadRecord("metadata", "text that is not UTF-8") from None

    def _about(self, i: int) -> dict[str, Any]:
        """What the JSON file of example i says, {} where there is none. Raises BadRecord."""
        found = self._file(i, "json")
        return _json(found) if found is not None else {}

    def fingerprint(self) -> str:
        left = ("captions left",) if self._table.meta["caption"] and not self.with_captions else ()
        return digest("tar", self.root, self._table.meta["state"], len(self), self.num_classes, self.channels, *left)


def open_tar(at: Location) -> TarSource:
    """Opens the examples of tar shards.

    Args:
        at: its path is a .tar file, or a folder of such files, see `splits.files_of_split`.

    Raises:
        ValueError: there are no shards or no such part, or they hold nothing.
    """
    source = TarSource(str(at.root), index_shards(at), at.num_classes, at.channels, at.captions)
    if not len(source):
        raise ValueError(f"{at.key} is {at.path!r}; its shards must hold at least one image")
    return source
