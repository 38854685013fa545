"""Where results are to go: looked at before the work that makes them begins."""

import os
import pathlib
import tempfile
from typing import Any

from tim_jax.system import files


def check_folder(folder: Any, option: str) -> None:
    """Checks that files can be written to a folder, which need not be there yet. Nothing there changes.

    Args:
        folder: its path. In object storage it is not looked at.
        option: of the command line that gives it, for messages.

    Raises:
        ValueError: one line.
    """
    if not files.is_local(folder):
        return
    path = pathlib.Path(os.path.abspath(folder))
    there = next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
    where = f"{option} is {str(folder)!r}; it must be a folder"
    if not there.is_dir():
        raise ValueError(f"{where}, and {there} is none")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ValueError(f"{where} that can be written to, and is not ({error.strerror})") from None


def check_file(file: Any, option: str) -> None:
    """Checks that a file can be written, as `check_folder` does. Raises ValueError."""
    if not files.is_local(file):
        return
    if os.path.isdir(file):
        raise ValueError(f"{option} is {str(file)!r}; it must be a file, and is a folder")
    try:
        check_folder(os.path.dirname(os.path.abspath(file)), option)
    except ValueError as error:
        reason = str(error).partition("; it must be a folder")[2]
        raise ValueError(f"{option} is {str(file)!r}; it must be a file in a folder{reason}") from None
