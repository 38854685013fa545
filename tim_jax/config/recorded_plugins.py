"""Plugins that a run has recorded: when their code is run again, and the copies that a workdir keeps of them.

A workdir may come from somebody else, and to load it must not run his code unasked. What is recorded is run where it is
the user's own file, still where it was and with the code that it had, or where it has been given again.
"""

import ast
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from tim_jax.config.plugins import LOADED, MARK, digest, load
from tim_jax.system import files

FOLDER = "plugins"  # of a workdir, with copies


def require(entries: Sequence[str], folder: Any = None) -> tuple[str, ...]:
    """Loads the plugins that a run has recorded, unless that would run code that may be somebody else's.

    Comments and layout may have changed since, where a copy shows that nothing else has.

    Args:
        entries: PATH#sha256=HASH.
        folder: the workdir that has recorded them; None for a file of exported weights, which has no copies.

    Raises:
        ValueError: one line that says what to type.
    """
    for entry in entries:
        path, _, known = entry.partition(MARK)
        if known in LOADED:
            continue
        copy = None if folder is None else _copied(copy_of(entry, folder), known)
        if same := [plugin for plugin in LOADED.values() if _same_code(plugin.text, copy)]:
            LOADED[known] = same[0]
            continue
        reason = _why_not(path, known, copy)
        if reason:
            what = "FILE runs that code" if folder is None else f"{copy_of(entry, folder)} runs the recorded copy"
            raise ValueError(
                f"plugin is {path!r}; it must be the code that the run was made with, and it {reason}: "
                f"--config.plugin={what} (read it first, if it is not your own)"
            )
        (now,) = load([path])
        LOADED[known] = LOADED[now.partition(MARK)[2]]
    return tuple(LOADED[entry.partition(MARK)[2]].entry for entry in entries)


def compare(recorded: Sequence[str], now: Sequence[str], folder: Any) -> None:
    """Raises ValueError if a run's configuration lacks a plugin that its workdir has recorded, or has other code."""
    for entry in recorded:
        known = entry.partition(MARK)[2]
        loaded = [other.partition(MARK)[2] for other in now]
        if known not in loaded and not any(LOADED[sha] is LOADED.get(known) for sha in loaded):
            given = tuple(other.partition(MARK)[0] for other in now)
            raise ValueError(
                f"plugin is {given!r}; it must hold the code that {folder} was made with: "
                f"--config.plugin={copy_of(entry, folder)} names the recorded copy; give another workdir otherwise"
            )


def copy_of(entry: str, folder: Any) -> epath.Path:
    """Where a workdir keeps the copy of a plugin."""
    return epath.Path(folder) / FOLDER / pathlib.PurePath(entry.partition(MARK)[0]).name


def keep_copies(entries: Iterable[str], folder: epath.Path) -> None:
    """Writes the files of loaded plugins to a workdir that has none of that name."""
    for entry in entries:
        copy = copy_of(entry, folder)
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            files.replace(copy, LOADED[entry.partition(MARK)[2]].text.encode())


def _copied(copy: epath.Path, known: str) -> str | None:
    """The text of a workdir's copy, if it is there and as it was."""
    text = copy.read_bytes().decode(errors="replace") if copy.exists() else ""
    return text if digest(text) == known else None


def _same_code(text: str, other: str | None) -> bool:
    """Whether two files are the same but for comments and layout."""
    try:
        return other is not None and ast.dump(ast.parse(text)) == ast.dump(ast.parse(other))
    except SyntaxError:
        return False


def _why_not(path: str, known: str, copy: str | None) -> str:
    """Why a recorded file is not simply run; "" where it is the user's own and its code as it was."""
    if not files.is_local(path) or not os.path.isfile(path):
        return "is not there"
    text = pathlib.Path(path).read_bytes().decode(errors="replace")
    if digest(text) != known and not _same_code(text, copy):
        return "has changed"
    return "" if os.stat(path).st_uid == os.getuid() else "belongs to another user"
