"""A folder with a JSONL manifest: one line per image with `image_file`, `captions` and, optionally, `bucket`.

A `bucket` ("512x768", height first, optionally after a name and a hyphen) states the size of the image; then no header
is read for the plan. The index holds only where each line ends, so that ten million lines take 80 MB on disk.
"""

import dataclasses
import functools
import json
import os
import posixpath
import re
from typing import Any

import numpy as np
from etils import epath

from tim_jax.data import splits, tables
from tim_jax.data.bad_records import BadRecord
from tim_jax.data.sources.base import EncodedImages, Location, Raw, digest, read_file
from tim_jax.data.stamps import stamp, stamps_of_some
from tim_jax.system import files
from tim_jax.system.progress import Bar

BLOCK = 2**24
SIZE = re.compile(r"(?:.*-)?(\d+)x(\d+)")


def index_lines(path: epath.Path, directory: str) -> epath.Path:
    """Finds where the lines of a file end, once for each state of the file.

    Args:
        path: the file.
        directory: the folder that the table of line ends is written below.

    Returns:
        The folder of that table, which has one column, `end`.
    """
    length, changed = stamp(path)
    folder = epath.Path(directory).expanduser() / f"lines-{digest('lines 1', str(path), length, changed)}"
    if not tables.exists(folder):
        with (
            tables.writing(folder, end=np.int64) as writer,
            path.open("rb") as file,
            Bar(total=length, desc=f"lines of {path.name}", unit="B", unit_scale=True) as progress,
        ):
            start, last = 0, b"\n"
            while block := file.read(BLOCK):
                writer.append(end=np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + start + 1)
                start, last = start + len(block), block[-1:]
                progress.update(len(block))
            if last != b"\n":  # the last line has no end
                writer.append(end=start)
            writer.meta["state"] = digest(length, changed)
    return folder


def inside(root: str, name: str) -> str:
    """The path, relative to the root, of a file that a manifest names. Raises BadRecord if it leaves the root.

    A relative name is one from the root, whatever the root is called. An absolute one must lie in it, by its letters or
    where links lead.

    Args:
        root: the manifest's folder, from the root of the disk or in object storage.
        name: as the manifest has it.
    """
    path = name.replace("\\", "/")
    if not files.is_local(root):
        path = path.removeprefix(root.rstrip("/") + "/")
    if "\0" in path or "://" in path:
        raise BadRecord("outside root", name[:200])
    path = posixpath.normpath(path)
    if path.startswith("/") and files.is_local(root):
        path = _from_root(root, path)
    if path.startswith("/") or path in (".", "..") or path.startswith("../"):
        raise BadRecord("outside root", name[:200])
    return path


def _from_root(root: str, path: str) -> str:
    """An absolute path as one from the root, if it lies there by one of the root's names; otherwise as it is."""
    for above in (posixpath.normpath(root), os.path.realpath(root)):
        if path.startswith(above.rstrip("/") + "/"):
            return path[len(above.rstrip("/")) + 1 :]
    folder, name = posixpath.split(path)
    if (real := os.path.realpath(folder)) != folder:
        return _from_root(root, f"{real}/{name}")
    return path


def declared_size(bucket: Any) -> tuple[int, int]:
    """The (height, width) that a manifest's `bucket` states. Raises BadRecord."""
    if isinstance(bucket, list | tuple) and len(bucket) == 2:
        bucket = f"{bucket[0]}x{bucket[1]}"
    found = SIZE.fullmatch(bucket) if isinstance(bucket, str) else None
    if not found or min(map(int, found.groups())) < 1 or max(map(int, found.groups())) >= 2**31:
        raise BadRecord("metadata", f"bucket {bucket!r:.60}, must be like '512x768'")
    return int(found[1]), int(found[2])


@dataclasses.dataclass(frozen=True)
class ManifestSource(EncodedImages):
    """Images with captions that the lines of a manifest name.

    Attributes:
        manifest: the JSONL file; it names images relative to its own folder.
        index: the table of its lines, see `index_lines`.
        channels: channels of the images to make.
    """

    manifest: str
    index: str
    channels: int = 3

    @functools.cached_property
    def _table(self) -> tables.Table:
        return tables.Table(epath.Path(self.index))

    @functools.cached_property
    def _root(self) -> str:
        return str(epath.Path(self.manifest).parent)

    @property
    def name(self) -> str:
        return epath.Path(self.manifest).parent.name

    @property
    def captions(self) -> bool:
        return True

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        return None, None, self.channels

    def __len__(self) -> int:
        return len(self._table["end"])

    def _lines(self, start: int, stop: int) -> list[bytes]:
        ends = self._table["end"][start:stop].astype(np.int64)
        first = int(self._table["end"][start - 1]) if start else 0
        try:
            with epath.Path(self.manifest).open("rb") as file:
                file.seek(first)
                block = file.read(int(ends[-1]) - first)
        except OSError as error:
            raise BadRecord("missing", str(error)) from None
        starts = [0] + (ends[:-1] - first).tolist()
        return [block[a : b - first] for a, b in zip(starts, ends.tolist(), strict=True)]

    def _entry(self, line: bytes) -> dict[str, Any]:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            raise BadRecord("metadata", f"not JSON: {line[:60]!r}") from None
        if not isinstance(entry, dict) or not isinstance(entry.get("image_file"), str) or not entry["image_file"]:
            raise BadRecord("metadata", "image_file must be the name of a file")
        return entry

    def identity(self, i: int) -> str:
        return f"{epath.Path(self.manifest).name}:{i + 1}"

    def stable_names(self, start: int, stop: int) -> list[str]:
        """Paths of the images without endings; of a line that names none the line."""
        found = []
        for line in self._lines(start, stop):
            try:
                path = posixpath.splitext(inside(self._root, self._entry(line)["image_file"]))[0]
            except BadRecord:
                path = line.decode(errors="replace")
            found.append(path)
        return found

    def raw(self, i: int, max_bytes: int = -1) -> Raw:
        entry = self._entry(self._lines(i, i + 1)[0])
        path = epath.Path(self._root) / inside(self._root, entry["image_file"])
        return Raw(read_file(path, max_bytes), None, entry.get("captions"))

    def headers(self, start: int, stop: int) -> list[tuple[int, int] | BadRecord]:
        # Lines are read together, which is what makes a plan of millions of images quick.
        found: list[tuple[int, int] | BadRecord] = []
        for i, line in enumerate(self._lines(start, stop), start):
            try:
                found.append(self._header(i, self._entry(line)))
            except BadRecord as error:
                found.append(error)
        return found

    def _header(self, i: int, entry: dict[str, Any]) -> tuple[int, int]:
        if entry.get("bucket") is None:
            return self.header(i)
        inside(self._root, entry["image_file"])
        self.checked(Raw(b"", None, entry.get("captions")))
        return declared_size(entry["bucket"])

    def fingerprint(self) -> str:
        return self._fingerprint

    def former_fingerprint(self) -> str:
        return digest("manifest", self.manifest, self._table.meta["state"], len(self), self.channels)

    @functools.cached_property
    def _fingerprint(self) -> str:
        """Of the manifest, and of some of its images, which tell that these were changed."""
        found = stamps_of_some(len(self), self._image, not files.is_local(self._root))
        return digest("manifest", self.manifest, self._table.meta["state"], len(self), found, self.channels)

    def _image(self, i: int) -> epath.Path | None:
        """The file of image i, None where the manifest names none."""
        try:
            return epath.Path(self._root) / inside(self._root, self._entry(self._lines(i, i + 1)[0])["image_file"])
        except BadRecord:
            return None


def open_manifest(at: Location) -> ManifestSource:
    """Opens the images of a manifest.

    Args:
        at: its path is the .jsonl file, or a folder that holds exactly one for each part of the data.

    Raises:
        ValueError: there is no such file, several, or one without lines.
    """
    found = splits.files_of_split(at, (".jsonl",))
    if len(found) != 1:
        raise ValueError(f"{at.key} is {at.path!r}; it must hold one .jsonl file, but holds {len(found)}")
    (path,) = found
    source = ManifestSource(str(path), str(index_lines(path, at.directory)), at.channels)
    if not len(source):
        raise ValueError(f"{at.key} is {at.path!r}; its manifest must have at least one line")
    return source
