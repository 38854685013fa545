"""A folder of class folders of images, see class_folders.py, or of images with captions.

Captions lie in a text file beside each image, `cat.txt` or `cat.caption` beside `cat.jpg`, or in one file of a hub,
`metadata.jsonl` or `metadata.csv`, see manifest.py.
"""

import dataclasses
import functools
from pathlib import PurePosixPath

import numpy as np
from etils import epath

from tim_jax.data import splits, tables
from tim_jax.data.bad_records import BadRecord
from tim_jax.data.class_folders import index_folder
from tim_jax.data.decode import ENDINGS
from tim_jax.data.sources.base import EncodedImages, Location, Raw, Source, digest, read_file
from tim_jax.data.sources.manifest import open_manifest
from tim_jax.data.stamps import stamp, stamps_of_some
from tim_jax.system import files

CAPTION_ENDINGS = (".txt", ".caption")
CAPTION_FILES = tuple(f"{ending} files" for ending in CAPTION_ENDINGS)  # as `Walk` counts them
METADATA = ("metadata.jsonl", "metadata.csv")


@dataclasses.dataclass(frozen=True)
class FilesInClassFolders(Source):
    """What sources of files in class folders share.

    Attributes:
        root: the folder of class folders.
        index: the table of its files, see `index_folder`.
        channels: channels of the images to make, or of every latent.
    """

    FORMER_KIND = "folder"  # what the fingerprints of version 0.1 called it

    root: str
    index: str
    channels: int = 3

    @functools.cached_property
    def _table(self) -> tables.Table:
        return tables.Table(epath.Path(self.index))

    @property
    def name(self) -> str:
        return epath.Path(self.root).name

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self._table.meta["classes"])

    @property
    def left_out(self) -> dict[str, int]:
        return self._table.meta["left_out"]

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        return None, None, self.channels

    def __len__(self) -> int:
        return len(self._table["label"])

    def identity(self, i: int) -> str:
        return tables.text_at(self._table, "name", i)

    def stable_names(self, start: int, stop: int) -> list[str]:
        """Paths without endings: an image and its latents, or its better copy, are on the same side."""
        return [str(PurePosixPath(self.identity(i)).with_suffix("")) for i in range(start, stop)]

    def file_bytes(self, i: int, max_bytes: int = -1) -> bytes:
        """The bytes of file i, or its first `max_bytes`. Raises BadRecord."""
        return read_file(epath.Path(self.root) / self.identity(i), max_bytes)

    def fingerprint(self) -> str:
        return self._fingerprint

    def former_fingerprint(self) -> str:
        root = epath.Path(self.root)
        names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        state = digest([(name, *stamp(root / name)) for name in names])
        return digest(self.FORMER_KIND, self.root, state, len(self), self.channels)

    @functools.cached_property
    def _fingerprint(self) -> str:
        """Of the folders, which tell that files came or went, and of some files, which tell that they were changed."""
        root = epath.Path(self.root)
        some = stamps_of_some(len(self), lambda i: root / self.identity(i), not files.is_local(root))
        kind = type(self).__name__
        return digest(
            kind, self.root, self._table.meta["state"], self._table.meta["folders"], len(self), some, self.channels
        )


@dataclasses.dataclass(frozen=True)
class FolderSource(FilesInClassFolders, EncodedImages):
    """Images in class folders."""

    def raw(self, i: int, max_bytes: int = -1) -> Raw:
        return Raw(self.file_bytes(i, max_bytes), int(self._table["label"][i]))

    @property
    def labels_at_hand(self) -> bool:
        return True

    def labels(self, examples: np.ndarray) -> np.ndarray:
        return self._table["label"][examples].astype(np.int64)


@dataclasses.dataclass(frozen=True)
class CaptionedFolder(FolderSource):
    """Images with a caption in a text file beside each of them; one without is a bad record."""

    @property
    def captions(self) -> bool:
        return True

    @property
    def left_out(self) -> dict[str, int]:
        found = super().left_out
        return {what: found[what] for what in found if what not in CAPTION_FILES}

    def raw(self, i: int, max_bytes: int = -1) -> Raw:
        return super().raw(i, max_bytes)._replace(captions=self._caption(i))

    def _caption(self, i: int) -> str:
        """The whole text of the file beside image i. Raises BadRecord."""
        path = epath.Path(self.root) / PurePosixPath(self.identity(i))
        for ending in CAPTION_ENDINGS:
            try:
                return read_file(path.with_suffix(ending)).decode("utf-8-sig").strip()
            except UnicodeDecodeError:
                raise BadRecord("caption", f"{path.stem}{ending} is not UTF-8") from None
            except BadRecord as error:
                if error.reason != "missing":
                    raise
        raise BadRecord("caption", f"there is no {path.stem}{CAPTION_ENDINGS[0]} beside {path.name}")


def open_folder(at: Location) -> EncodedImages:
    """Opens the images of `at.path`: in class folders, or all in one folder, with captions where these are wanted.

    Captions are those of a file `metadata.jsonl` or `metadata.csv`, or else of text files beside the images if at least
    every other image has one.

    Raises:
        ValueError: there are no images.
    """
    if at.captions and (found := metadata_files(at)):
        return open_manifest(at, found)
    where = (*index_folder(at, ENDINGS, flat=True), at.channels)
    source = FolderSource(*where)
    captions = sum(source.left_out.get(what, 0) for what in CAPTION_FILES)
    return CaptionedFolder(*where) if at.captions and 2 * captions >= len(source) else source


def metadata_files(at: Location) -> list[epath.Path]:
    """The files of captions as hubs name them, of the part `at.split`; [] where there are none."""
    try:
        return splits.files_of_split(at, METADATA)
    except splits.NoFiles:
        return []
