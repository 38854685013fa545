"""Files on a disk or in object storage (gs://…). There a file is an object that is written whole and cannot grow."""

import contextlib
import os
import pathlib
import re
import secrets
import time
from collections.abc import Iterator
from typing import TypeVar

import fsspec
from etils import epath

# Checkpoints reach object storage by a road of their own (tensorstore), which a cache of listings would not see.
for _scheme in ("gcs", "s3", "az"):
    fsspec.config.conf.setdefault(_scheme, {}).setdefault("use_listings_cache", False)


_Path = TypeVar("_Path", epath.Path, pathlib.Path)
SECONDS = 60.0  # after which what grows is written anew in object storage
UNFINISHED = re.compile(r"\..+\.(\d+\.)?new")  # what `appearing` calls a file before it is whole


def is_local(path: os.PathLike | str) -> bool:
    """Returns whether a path is on a disk of this machine, or mounted as one."""
    return "://" not in str(path)


def absolute(path: epath.Path) -> epath.Path:
    """Returns the path from the root, the only kind that object storage has."""
    return path.resolve() if is_local(path) else path


@contextlib.contextmanager
def appearing(path: _Path, alone: bool = False) -> Iterator[_Path]:
    """A context that gives the path of a new file, which at the end is moved to `path`, whole or not at all.

    In object storage, where a file is written whole in any case, it is `path` itself.

    Args:
        path: Where the file is to be; what is there is replaced.
        alone: Whether no other process writes the same file at the same time. Then what a kill leaves behind has
            always the same name, and the next try writes over it.
    """
    if not is_local(path):
        yield path
        return
    new = path.parent / (f".{path.name}.new" if alone else f".{path.name}.{secrets.randbits(48)}.new")  # see UNFINISHED
    try:
        yield new
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def replace(path: os.PathLike | str, data: bytes) -> None:
    """Writes a file in one move, so that no reader ever sees half of it."""
    with appearing(epath.Path(path)) as new:
        new.write_bytes(data)


def move_folder(folder: epath.Path, to: epath.Path) -> None:
    """Moves a folder to a new place, whose parents are made. In object storage it goes file by file."""
    if is_local(folder):
        to.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(to)
        return
    copy_folder(folder, to)
    folder.rmtree()


def copy_folder(folder: epath.Path, to: epath.Path) -> None:
    """Copies all files below a folder. Object storage knows no folders but in names."""
    if is_local(to):
        to.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_dir():
            copy_folder(path, to / path.name)
        else:
            (to / path.name).write_bytes(path.read_bytes())


class Log:
    """A text file to which lines are added; what is there stays. A line that a kill or a full disk has torn is ended.

    In object storage it is written anew after some time, and by `close`; a process that is killed loses the lines of
    that time.
    """

    def __init__(self, path: epath.Path, seconds: float = SECONDS):
        """Reads what is there, in object storage. seconds: From one write to the next there, at least."""
        self.path, self.seconds = path, seconds
        self._text = "" if is_local(path) or not path.exists() else path.read_text()
        self._text += "\n" if self._text and not self._text.endswith("\n") else ""
        self._written, self._waiting = -float("inf"), False

    def add(self, line: str) -> None:
        """Adds a line, or several with line breaks between them."""
        if is_local(self.path):
            with open(self.path, "ab+") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(end - 1, 0))
                torn = file.read(1) not in (b"", b"\n")
                file.write(b"\n" * torn + line.encode() + b"\n")
            return
        self._text += line + "\n"
        self._waiting = True
        if time.monotonic() - self._written >= self.seconds:
            self.close()

    def close(self) -> None:
        """Writes what waits. Lines may be added afterwards as well."""
        if self._waiting:
            replace(self.path, self._text.encode())
            self._written, self._waiting = time.monotonic(), False
