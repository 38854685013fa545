"""A folder with a manifest: one line per image with the name of its file and its captions, as JSONL or CSV.

The name is under `image_file` or, as on hubs, `file_name`, and the captions, one text or a list, are under `captions`,
`caption`, `text` or `prompt`. Lines of one image give it several captions. An optional `bucket` ("512x768", height
first, optionally after a name and a hyphen) states the size of the image; then no header is read for the plan. The
index holds only where each line ends, so that ten million lines take 80 MB on disk.
"""

import dataclasses
import functools
import json
import os
import posixpath
import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from etils import epath

from tim_jax.data import splits, tables
from tim_jax.data.bad_records import BadRecord
from tim_jax.data.lines import index_lines, lines_of_csv
from tim_jax.data.sources.base import EncodedImages, Location, Raw, digest, read_file
from tim_jax.data.stamps import stamps_of_some
from tim_jax.system import caches, files, holds

NAMES = ("image_file", "file_name")  # keys of the file; a hub has a further one that ends in _file_name as well
CAPTIONS = ("captions", "caption", "text", "prompt")
SIZE = re.compile(r"(?:.*-)?(\d+)x(\d+)")


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
        manifest: the file; it names images relative to its own folder.
        index: the table of its lines, see `index_lines`.
        channels: channels of the images to make.
        lines: the JSONL file that the manifest's rows were written to; "" where it is one.
    """

    manifest: str
    index: str
    channels: int = 3
    lines: str = ""

    @functools.cached_property
    def _table(self) -> tables.Table:
        return tables.Table(epath.Path(self.index))

    @functools.cached_property
    def _file(self) -> tuple[epath.Path, holds.Hold | None]:
        """The file of the lines; rows that were written as such stay as long as somebody reads them."""
        path = epath.Path(self.lines or self.manifest)
        return path, caches.used(path.parent) if self.lines else None

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
            with self._file[0].open("rb") as file:
                file.seek(first)
                block = file.read(int(ends[-1]) - first)
        except OSError as error:
            raise BadRecord("missing", str(error)) from None
        starts = [0] + (ends[:-1] - first).tolist()
        return [block[a : b - first] for a, b in zip(starts, ends.tolist(), strict=True)]

    def line(self, i: int) -> bytes:
        """Line i as it is stored."""
        return self._lines(i, i + 1)[0]

    def _entry(self, line: bytes) -> dict[str, Any]:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            raise BadRecord("metadata", f"not JSON: {line[:60]!r}") from None
        name = entry.get(name_key(entry)) if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            raise BadRecord("metadata", "image_file or file_name must be the name of a file")
        captions = next((entry[key] for key in CAPTIONS if entry.get(key) is not None), None)
        return entry | {"image_file": name, "captions": captions}

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
        entry = self._entry(self.line(i))
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
            return epath.Path(self._root) / inside(self._root, self._entry(self.line(i))["image_file"])
        except BadRecord:
            return None


def name_key(entry: Collection[Any]) -> str:
    """Which of the keys of a line names its image; "" for none."""
    for key in entry:
        if key in NAMES or (isinstance(key, str) and key.endswith("_file_name")):
            return key
    return ""


def check_columns(at: Location, path: epath.Path, source: ManifestSource) -> None:
    """Raises ValueError for a manifest whose first line has no key of a file, or none of captions."""
    try:
        first = json.loads(source.line(0))
    except (ValueError, RecursionError):
        return  # a bad record
    if not isinstance(first, dict):
        return
    for what, found, names in (
        ("the file of an image", name_key(first), NAMES[::-1]),
        ("its captions", any(key in first for key in CAPTIONS), CAPTIONS),
    ):
        if not found:
            raise ValueError(
                f"{at.key} is {at.path!r}; its {path.name} must name {what} under {' or '.join(names)}, and has "
                f"{', '.join(map(str, first)) or 'nothing'}"
            )


def open_manifest(at: Location, found: Sequence[epath.Path] = ()) -> ManifestSource:
    """Opens the images of a manifest.

    Args:
        at: its path is the .jsonl or .csv file, or a folder that holds exactly one for each part of the data; CSV files
            beside JSONL files are not read.
        found: the manifest, where it has been found already.

    Raises:
        ValueError: there is no such file, several, or one without lines or without names of images.
    """
    found = found or _manifests(at)
    if len(found) != 1:
        raise ValueError(
            f"{at.key} is {at.path!r}; it must hold one manifest, but holds {', '.join(path.name for path in found)}"
        )
    (path,) = found
    lines = lines_of_csv(at, path) if path.name.lower().endswith(".csv") else path
    index = str(index_lines(lines, at.directory))
    source = ManifestSource(str(path), index, at.channels, "" if lines == path else str(lines))
    if not len(source):
        raise ValueError(f"{at.key} is {at.path!r}; its manifest must have at least one line")
    check_columns(at, path, source)
    return source


def _manifests(at: Location) -> list[epath.Path]:
    """The manifests of the part `at.split`: JSONL files, or else CSV files."""
    try:
        return splits.files_of_split(at, (".jsonl",))
    except splits.NoFiles:
        return splits.files_of_split(at, (".jsonl", ".csv"))
