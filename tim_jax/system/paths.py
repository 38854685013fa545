"""Paths as users give them, on a command line or in a configuration, looked at before the work begins."""

import os
import pathlib
import re
import tempfile
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import fsspec
from etils import epath

from tim_jax.system import files

PACKAGES = {"gs": '"tim-jax[gcs]"', "s3": "s3fs", "az": "adlfs"}  # what reads object storage, as pip installs it
REMOTE = tuple(f"{scheme}://" for scheme in PACKAGES)  # as epath knows it
UNFIT = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories of control characters, of bytes not in UTF-8, of line ends
ROOM = 2**20  # bytes that a disk must have left, so that a full one is found before the work
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/+")
_PATTERN = re.compile(r"[][*?\\]")


def given(text: str, name: str, schemes: Sequence[str] = REMOTE) -> epath.Path:
    """Returns a path that a user gave, with the home folder in place of a leading "~" or "~user".

    What `epath.Path` alone would take for a folder of that name, or leave half done, is refused: a home folder that is
    not known, a scheme that nothing here reads.

    Args:
        text: As it was given.
        name: The flag or key that has it, for errors.
        schemes: Beginnings such as "gs://" that are allowed.

    Raises:
        ValueError: Naming flag or key and value.
    """

    def wrong(must: str) -> ValueError:
        return ValueError(f"{name} is {text!r}; it must {must}")

    if not text:
        raise wrong("name a file or folder")
    if any(unicodedata.category(letter) in UNFIT for letter in text):
        raise wrong("be a path in UTF-8, without control characters")
    if (scheme := _SCHEME.match(text)) and not text.startswith(tuple(schemes)):
        if scheme[0].startswith("file:"):
            raise wrong("be a plain path, without 'file:'")
        allowed = f", or begin with {', '.join(schemes)}" if schemes else ""
        raise wrong(f"be a path on a disk of this machine{allowed}")
    if text.startswith(REMOTE):
        _check_package(text.partition("://")[0], wrong)
    elif (expanded := os.path.expanduser(text)).startswith("~"):
        raise wrong("begin with a home folder that is known here; give the whole path")
    else:
        text = expanded
    return epath.Path(text)


def _check_package(scheme: str, wrong: Callable[[str], ValueError]) -> None:
    try:
        fsspec.get_filesystem_class({"gs": "gcs", "az": "abfs"}.get(scheme, scheme))
    except ImportError as error:
        package = PACKAGES[scheme]
        must = f"be a local path, since {scheme}:// needs a package that is not installed: pip install {package}"
        raise wrong(must) from error


def run_folder(text: str, name: str) -> epath.Path:
    """Returns the folder of a run, which holds checkpoints, or may come to hold them; see `given`.

    The library that stores checkpoints lists its own folders by patterns that contain the whole path: in one with
    characters of patterns it finds nothing that it has written.

    Raises:
        ValueError: Naming flag or key and value; also for a path that leads through a file.
    """
    path = given(text, name)
    whole = files.absolute(path)
    if found := _PATTERN.search(str(whole)):
        here = f" (it is {whole})" if found[0] not in text else ""
        raise ValueError(
            f"{name} is {text!r}{here}; it must have none of the characters [ ] * ? \\, which lose checkpoints"
        )
    if files.is_local(whole):
        for part in (whole, *whole.parents):
            if os.path.lexists(part) and not part.is_dir():
                raise ValueError(f"{name} is {text!r}; it must be a folder, and {part} is none")
    return path


def new_file(text: str, name: str) -> pathlib.Path:
    """Returns the local path of a file that is to be written, whose folders may have to be made; see `given`.

    Raises:
        ValueError: Naming flag or key and value, where no file can be written there.
    """
    path = pathlib.Path(given(text, name, ()))
    check_file(path, name)
    return path


def check_folder(folder: Any, name: str) -> None:
    """Checks that files can be written to a folder, which need not be there yet, and are not the last that fit.

    Nothing there changes.

    Args:
        folder: Its path. In object storage it is not looked at.
        name: The flag or key that has it, for errors.

    Raises:
        ValueError: Naming flag or key and value.
    """
    if not files.is_local(folder):
        return
    path = pathlib.Path(os.path.abspath(folder))
    there = next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
    where = f"{name} is {str(folder)!r}; it must be a folder"
    if not there.is_dir():
        raise ValueError(f"{where}, and {there} is none")
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(ROOM))
            file.flush()
    except OSError as error:
        raise ValueError(f"{where} that can be written to, and is not ({error.strerror})") from None


def check_file(file: Any, name: str) -> None:
    """Checks that a file can be written, as `check_folder` does. Raises ValueError."""
    if not files.is_local(file):
        return
    if os.path.isdir(file):
        raise ValueError(f"{name} is {str(file)!r}; it must be a file, and is a folder")
    try:
        check_folder(os.path.dirname(os.path.abspath(file)), name)
    except ValueError as error:
        reason = str(error).partition("; it must be a folder")[2]
        raise ValueError(f"{name} is {str(file)!r}; it must be a file in a folder{reason}") from None
