"""A folder of class folders of images: the label is the folder's place among the class folders in order of name."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
from etils import epath
from tqdm import tqdm

from tim_jax.data import tables
from tim_jax.data.sources.base import Fields, Location, Raw, Readable, digest, read_file, stamp

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2")


def class_folders(root: epath.Path) -> list[str]:
    """The names of the folders in a folder, in order, hidden ones left out. Raises ValueError if there are none."""
    found = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise ValueError(f"data.path is {str(root)!r}; it must hold one folder per class")
    return found


def files_in(folder: epath.Path, endings: tuple[str, ...]) -> Iterator[str]:
    """The names of the files in a folder that end so, in order."""
    return iter(sorted(path.name for path in folder.iterdir() if path.name.lower().endswith(endings)))


def index_folder(root: epath.Path, directory: str, endings: tuple[str, ...]) -> epath.Path:
    """The table of all files in class folders, written below `directory` once for each state of the folders."""
    classes = class_folders(root)
    state = [(name, *stamp(root / name)) for name in classes]
    folder = epath.Path(directory).expanduser() / f"files-{digest('files 1', str(root), state, endings)}"
    if not tables.exists(folder):
        columns = {"name": np.uint8, "name_end": np.int64, "label": np.int32}
        with tables.writing(folder, **columns) as writer, tqdm(desc=f"files of {root.name}", unit=" files") as progress:
            for label, name in enumerate(classes):
                for file in files_in(root / name, endings):
                    tables.append_text(writer, "name", f"{name}/{file}")
                    writer.append(label=label)
                    progress.update()
            writer.meta |= {"classes": classes, "state": digest(state)}
    return folder


@dataclasses.dataclass(frozen=True)
class InClassFolders(Fields):
    """What sources of files in class folders share. root: the folder. index: its table of files. channels: of the
    images to make, or of every latent."""

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
    def image_shape(self) -> tuple[None, None, int]:
        return None, None, self.channels

    def __len__(self) -> int:
        return len(self._table["label"])

    def identity(self, i: int) -> str:
        return tables.text_at(self._table, "name", i)

    def read(self, i: int, most: int = -1) -> bytes:
        """The bytes of file i, or its first `most`. Raises BadRecord."""
        return read_file(epath.Path(self.root) / self.identity(i), most)


class FolderSource(InClassFolders, Readable):
    """Images in class folders."""

    def raw(self, i: int, most: int = -1) -> Raw:
        return Raw(self.read(i, most), int(self._table["label"][i]))

    def fingerprint(self) -> str:
        return digest("folder", self.root, self._table.meta["state"], len(self), self.channels)


def open_folder(at: Location) -> FolderSource:
    """The images in the class folders of `path`. Raises ValueError if there are none."""
    index = index_folder(at.root, at.directory, IMAGES)
    source = FolderSource(str(at.root), str(index), at.channels)
    if not len(source):
        raise ValueError(f"data.path is {at.path!r}; its class folders hold no images ({', '.join(IMAGES)})")
    return source
