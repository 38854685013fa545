"""A folder of class folders of images, see class_folders.py."""

import dataclasses
import functools
from pathlib import PurePosixPath

import numpy as np
from etils import epath

from tim_jax.data import tables
from tim_jax.data.class_folders import index_folder
from tim_jax.data.decode import ENDINGS
from tim_jax.data.sources.base import EncodedImages, Location, Raw, Source, digest, read_file
from tim_jax.data.stamps import stamp, stamps_of_some
from tim_jax.system import files


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


def open_folder(at: Location) -> FolderSource:
    """Opens the images in the class folders of `at.path`. Raises ValueError if there are none."""
    return FolderSource(*index_folder(at, ENDINGS), at.channels)
