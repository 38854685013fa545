"""A folder of class folders of images: the label is the folder's place among the class folders in order of name."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
from etils import epath

from tim_jax.data import tables
from tim_jax.data.sources.base import EncodedImages, Location, Raw, Source, digest, read_file, stamp
from tim_jax.system.progress import Bar

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2")


def class_folders(at: Location) -> list[str]:
    """The names of the folders in `at.root`, sorted, without hidden ones. Raises ValueError if there are none."""
    found = sorted(path.name for path in at.root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise ValueError(f"{at.key} is {at.path!r}; it must hold one folder per class")
    return found


def files_in(folder: epath.Path, endings: tuple[str, ...]) -> Iterator[str]:
    """The sorted names of the files in a folder that have one of the endings."""
    return iter(sorted(path.name for path in folder.iterdir() if path.name.lower().endswith(endings)))


def index_folder(at: Location, endings: tuple[str, ...]) -> str:
    """Lists all files in class folders, once for each state of the folders.

    Args:
        at: its path holds the class folders, and the list is written below its directory.
        endings: of the files that count, in lower case.

    Returns:
        The folder of the table of files.

    Raises:
        ValueError: there are no class folders, or no such files in them.
    """
    root, classes = at.root, class_folders(at)
    state = [(name, *stamp(root / name)) for name in classes]
    folder = epath.Path(at.directory).expanduser() / f"files-{digest('files 1', str(root), state, endings)}"
    if not tables.exists(folder):
        columns = {"name": np.uint8, "name_end": np.int64, "label": np.int32}
        progress = Bar(desc=f"files of {root.name}", unit=" files")
        with tables.writing(folder, **columns) as writer, progress:
            for label, name in enumerate(classes):
                for file in files_in(root / name, endings):
                    tables.append_text(writer, "name", f"{name}/{file}")
                    writer.append(label=label)
                    progress.update()
            writer.meta |= {"classes": classes, "state": digest(state)}
    if not len(tables.Table(folder)["label"]):
        raise ValueError(f"{at.key} is {at.path!r}; its class folders must hold files that end in {', '.join(endings)}")
    return str(folder)


@dataclasses.dataclass(frozen=True)
class FilesInClassFolders(Source):
    """What sources of files in class folders share.

    Attributes:
        root: the folder of class folders.
        index: the table of its files, see `index_folder`.
        channels: channels of the images to make, or of every latent.
    """

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
        return len(self._table.meta["classes"])

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        return None, None, self.channels

    def __len__(self) -> int:
        return len(self._table["label"])

    def identity(self, i: int) -> str:
        return tables.text_at(self._table, "name", i)

    def file_bytes(self, i: int, max_bytes: int = -1) -> bytes:
        """The bytes of file i, or its first `max_bytes`. Raises BadRecord."""
        return read_file(epath.Path(self.root) / self.identity(i), max_bytes)


@dataclasses.dataclass(frozen=True)
class FolderSource(FilesInClassFolders, EncodedImages):
    """Images in class folders."""

    def raw(self, i: int, max_bytes: int = -1) -> Raw:
        return Raw(self.file_bytes(i, max_bytes), int(self._table["label"][i]))

    def fingerprint(self) -> str:
        return digest("folder", self.root, self._table.meta["state"], len(self), self.channels)


def open_folder(at: Location) -> FolderSource:
    """Opens the images in the class folders of `at.path`. Raises ValueError if there are none."""
    return FolderSource(str(at.root), index_folder(at, IMAGES), at.channels)
