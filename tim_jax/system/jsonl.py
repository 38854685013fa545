"""Files of JSON, with one value or an object on every line; a kill or a full disk may have torn them, or joined two."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from absl import logging
from etils import epath

from tim_jax.system import files
from tim_jax.system.user_errors import one_line

NAMES: dict[type, str] = {dict: "object", list: "list"}


def read_object(path: Any, kind: type = dict) -> Any:
    """Returns the one value of a JSON file.

    Args:
        path: Of the file.
        kind: Type that the value must have.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: In one line that names the file, if it is damaged, or holds something else.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: it cannot be read, or is damaged ({type(error).__name__}: {error})") from None
    if not isinstance(value, kind):
        raise ValueError(f"{path}: it must be a JSON {NAMES[kind]}, and is a {type(value).__name__}")
    return value


def read(path: epath.Path) -> list[dict[str, Any]]:
    """Returns the objects of a file, [] where there is none. Lines that are not whole are left out, and told."""
    found, torn = [], 0
    for _, value in _lines(path):
        if value is None:
            torn += 1
        else:
            found.append(value)
    if torn:
        logging.warning("%s: %s", path, left_out(torn))
    return found


def add(path: epath.Path, value: Mapping[str, Any]) -> None:
    """Adds an object to a file, which need not be there. What cannot be written is logged, and the run goes on."""
    try:
        log = files.Log(path)
        log.add(json.dumps(value))
        log.close()
    except Exception as error:  # object storage has errors of its own kinds
        logging.warning("%s could not be written: %s; the run goes on", path, one_line(error)[:200])


def keep(path: epath.Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrites a file without the objects that are not wanted, and without lines that are not whole.

    It stays as it is where all are wanted; it need not be there.
    """
    lines = list(_lines(path))
    stay = [line for line, value in lines if value is not None and wanted(value)]
    if len(stay) < len(lines):
        files.replace(path, b"".join(line + b"\n" for line in stay))


def objects(data: bytes) -> Iterator[dict[str, Any] | None]:
    """Yields the objects of lines, and None for each line that is not one."""
    for line in data.split(b"\n"):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            yield value if isinstance(value, dict) else None


def left_out(count: int) -> str:
    """What to say of lines that are not whole."""
    return f"{count} of its lines left out, which {'is' if count == 1 else 'are'} not whole"


def _lines(path: epath.Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        for value in objects(line):
            yield line, value
