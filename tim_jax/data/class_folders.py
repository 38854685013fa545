"""The files in class folders, listed once: a label is the place of a folder among the class folders in order of name.

A class folder may hold further folders, whose images are of its class. Folders without images are no classes, and
neither are those that are hidden or that systems leave behind. The class folders may lie in folders that are named by
parts of the data (see splits.py); then a class is one of any part, so that labels mean the same in all of them. Images
that lie in no class folder, where there are none, are one class.
"""

import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np
from absl import logging
from etils import epath

from tim_jax.data import splits, tables
from tim_jax.data.sources.base import Location, digest
from tim_jax.data.stamps import stamp, stamps
from tim_jax.system import files
from tim_jax.system.progress import Bar

OF_SYSTEMS = ("__MACOSX", "lost+found", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
COLUMNS = {"name": np.uint8, "name_end": np.int64, "label": np.int32}


def is_junk(name: str) -> bool:
    """Whether a file or folder of that name is hidden, or one that a system keeps for itself."""
    return name.startswith(".") or name in OF_SYSTEMS


def folders_in(folder: epath.Path) -> list[str]:
    """The sorted names of the folders in a folder, without junk."""
    return sorted(path.name for path in folder.iterdir() if not is_junk(path.name) and path.is_dir())


def parts_in(at: Location, flat: bool = False) -> dict[str, str]:
    """{part: name of its folder} where class folders lie in folders named by parts; otherwise {}.

    Where `flat`, folders named by several parts need no class folders; otherwise raises ValueError for such ones.
    """
    names = folders_in(at.folder)
    found = {split: name for name in names if (split := splits.split_of_folder(name))}
    if not found or len(found) < len(names):
        return {}
    if flat and len(found) > 1 or any(folders_in(at.root / name) for name in found.values()):
        return found
    if len(found) > 1:
        raise ValueError(
            f"{at.key} is {at.path!r}; it must hold one folder per class in each of {', '.join(found)}, which are "
            "names of parts of the data"
        )
    return {}


def _entries(folder: epath.Path, endings: tuple[str, ...]) -> Iterator[tuple[str, bool]]:
    """(name, whether it is a folder) of all in a folder. In object storage what has an ending is taken for a file."""
    if files.is_local(folder):
        with os.scandir(folder) as found:
            yield from sorted((entry.name, entry.is_dir()) for entry in found)
    else:
        yield from sorted((p.name, not p.name.lower().endswith(endings) and p.is_dir()) for p in folder.iterdir())


@dataclasses.dataclass
class Walk:
    """What was found in class folders.

    Attributes:
        endings: of the files that count, in lower case.
        folders: folder within a class folder, from the root -> its stamp.
        left_out: what was met and does not count -> how many of it.
    """

    endings: tuple[str, ...]
    folders: dict[str, list] = dataclasses.field(default_factory=dict)
    left_out: Counter[str] = dataclasses.field(default_factory=Counter)

    def files(self, root: epath.Path, name: str, above: tuple[str, ...] = (), deeper: bool = True) -> Iterator[str]:
        """The files of a folder and of the folders within it, from the root.

        Args:
            root: of all class folders.
            name: of the folder, from the root; "" for the root itself.
            above: where the folders that lead to it really are: one that is met again is not entered.
            deeper: whether folders within it are entered.
        """
        here = os.path.realpath(root / name) if files.is_local(root) else name
        if here in above:
            return
        for entry, is_folder in _entries(root / name, self.endings):
            path = f"{name}/{entry}" if name else entry
            if is_junk(entry):
                self.left_out["hidden folders" if is_folder else "hidden files"] += 1
            elif is_folder and not deeper:
                self.left_out["folders without examples"] += 1
            elif is_folder:
                self.folders[path] = list(stamp(root / path))
                yield from self.files(root, path, (*above, here))
            elif entry.lower().endswith(self.endings):
                yield path
            else:
                self.left_out[f"{PurePosixPath(entry).suffix.lower() or 'other'} files"] += 1


def index_folder(at: Location, endings: tuple[str, ...], flat: bool = False) -> tuple[str, str]:
    """Lists all files in class folders, once for each state of the folders.

    Args:
        at: its path holds the class folders, and the list is written below its directory.
        endings: of the files that count, in lower case.
        flat: whether files in no class folder are listed, as of one class, where class folders have none.

    Returns:
        The folder that holds the class folders of `at.split`, and the folder of the table of its files.

    Raises:
        ValueError: there is no such part, there are no class folders, or no such files in them.
    """
    parts = parts_in(at, flat)
    split = splits.own_split(at, parts or (splits.TRAIN,))
    root = at.root / parts[split] if parts else at.root
    roots = [at.root / name for name in parts.values()] or [root]
    state = [(str(r), name, *stamp(r / name)) for r in roots for name in folders_in(r)]
    if not any(r == str(root) for r, *_ in state):
        if flat:
            return str(root), str(_flat_index(at, root, endings))
        raise ValueError(f"{at.key} is {at.path!r}; it must hold one folder per class")
    name = f"files-{digest('files 2', str(root), state, endings)}"
    folders = (epath.Path(at.directory).expanduser() / f"{name}-{k}" for k in itertools.count())
    # A table that no longer holds stays where it is, for those who read it.
    folder = next(folder for folder in folders if not tables.exists(folder) or _is_fresh(folder, root))
    if not tables.exists(folder):
        _write_index(folder, root, roots, endings, digest(state))
    elif not files.is_local(root):
        logging.info("%s has the files of %s as of its first use; delete it if files came or went since", folder, root)
    if not len(tables.Table(folder)["label"]):
        if flat:
            return str(root), str(_flat_index(at, root, endings))
        raise ValueError(f"{at.key} is {at.path!r}; its class folders must hold files that end in {', '.join(endings)}")
    return str(root), str(folder)


def _flat_index(at: Location, root: epath.Path, endings: tuple[str, ...]) -> epath.Path:
    """The table of the files that lie in `root` itself, as of one class that is called as `at.root` is.

    Raises ValueError if there are none.
    """
    state = digest(stamp(root))
    folder = epath.Path(at.directory).expanduser() / f"files-{digest('flat 1', str(root), state, endings)}"
    if not tables.exists(folder):
        walk = Walk(endings)
        found = list(walk.files(root, "", deeper=False))
        if not found:
            raise ValueError(
                f"{at.key} is {at.path!r}; it must hold files that end in {', '.join(endings)}, in one folder per "
                "class or all in one folder"
            )
        _write_table(folder, {at.root.name: found}, [at.root.name], walk, state)
    return folder


def _is_fresh(folder: epath.Path, root: epath.Path) -> bool:
    """Whether the folders within class folders are as they were when a table was written."""
    within = tables.Table(folder).meta["folders"]
    return stamps(root / name for name in within) == [tuple(found) for found in within.values()]


def _write_index(
    folder: epath.Path, root: epath.Path, roots: list[epath.Path], endings: tuple[str, ...], state: str
) -> None:
    """Writes the table of the files in the class folders of `root`; classes are those of all `roots`."""
    walk, found, elsewhere = Walk(endings), {}, set()
    with Bar(desc=f"files of {root.name}", unit=" files", delay=1) as progress:
        for name in folders_in(root):
            found[name] = list(walk.files(root, name))
            progress.update(len(found[name]))
    for other in roots:
        if other != root:
            names = folders_in(other)
            elsewhere |= {name for name in names if next(Walk(endings).files(other, name), None) is not None}
    classes = sorted({name for name, names in found.items() if names} | elsewhere)
    walk.left_out["folders without examples"] = len(found.keys() - set(classes))
    for entry, is_folder in _entries(root, endings):
        if is_junk(entry):
            walk.left_out["hidden folders" if is_folder else "hidden files"] += 1
        elif not is_folder and entry.lower().endswith(endings):
            walk.left_out["files outside class folders"] += 1
    _write_table(folder, found, classes, walk, state)


def _write_table(folder: epath.Path, found: dict[str, list[str]], classes: list[str], walk: Walk, state: str) -> None:
    """Writes the table of the files found by class."""
    with tables.writing(folder, **COLUMNS) as writer:
        for label, name in enumerate(classes):
            for file in found.get(name, ()):
                tables.append_text(writer, "name", file)
                writer.append(label=label)
        left_out = {what: count for what, count in sorted(walk.left_out.items()) if count}
        writer.meta |= {"classes": classes, "state": state, "folders": walk.folders, "left_out": left_out}
