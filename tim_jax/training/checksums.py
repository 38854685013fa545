"""Checksums of a folder, in the form of `sha256sum`, so that one altered byte in any of its files is found.

Process p of P writes `manifest-p-of-P.sha256` for every P-th file; the last line is a checksum of the lines before it.
"""

import errno
import hashlib
import os
import re
import stat

from etils import epath

from tim_jax.system import files

NAME = re.compile(r"manifest-(\d+)-of-(\d+)\.sha256")
OWN = re.compile(NAME.pattern + "|" + files.UNFINISHED.pattern)


def write(folder: epath.Path, process: int = 0, count: int = 1) -> None:
    """Writes the manifest of one process. The files must not change any more.

    Args:
        folder: Whose files are summed up.
        process: Number of this process, from 0 on.
        count: Number of processes, which share the files.
    """
    lines = "".join(f"{digest(folder / name)}  {name}\n" for name in _files(folder)[process::count])
    files.replace(folder / f"manifest-{process}-of-{count}.sha256", (lines + _last_line(lines)).encode())


def fingerprint(folder: epath.Path) -> str | None:
    """Returns what identifies a folder, read from its manifests alone, or None without manifests.

    It does not depend on how many processes wrote them, nor on where the folder lies.
    """
    if not has_manifest(folder):
        return None
    manifests = [path.read_text() for path in folder.iterdir() if NAME.fullmatch(path.name)]
    lines = sorted(line for text in manifests for line in text.splitlines() if not line.startswith("#"))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def former_fingerprint(folder: epath.Path) -> str:
    """Returns what step grids were recorded with before they had `fingerprint`; it depends on how many processes
    wrote the manifests."""
    manifests = sorted(path for path in folder.iterdir() if NAME.fullmatch(path.name))
    return hashlib.sha256(b"".join(path.read_bytes() for path in manifests)).hexdigest()


def has_manifest(folder: epath.Path) -> bool:
    """Returns whether the manifests of all processes are there."""
    found = [NAME.fullmatch(path.name) for path in folder.iterdir()]
    parts = {(int(name[1]), int(name[2])) for name in found if name}
    return any({(p, count) for p in range(count)} <= parts for _, count in parts)


def damage(folder: epath.Path, process: int = 0, count: int = 1) -> str | None:
    """Returns what is wrong with a folder that has a manifest, or None.

    A file is missing, altered, cut short, or cannot be read: a folder, a pipe or a dead link is in its place, or the
    disk fails.

    Args:
        folder: Which folder.
        process: Number of this process, from 0 on. It checks all manifests, and every `count`-th of the other files.
        count: Number of processes.
    """
    expected: dict[str, str] = {}
    for path in sorted(path for path in folder.iterdir() if NAME.fullmatch(path.name)):
        if found := not_a_file(path):
            return f"{path.name} {found}"
        try:
            lines, mark, last = path.read_bytes().decode("utf-8", "replace").rpartition("# ")
        except OSError as error:
            return f"{path.name} cannot be read: {error.strerror or error}"
        pairs = [line.split("  ", 1) for line in lines.splitlines()]
        if mark + last != _last_line(lines) or any(len(pair) < 2 for pair in pairs):
            return f"{path.name} is altered"
        expected |= {name: sha for sha, name in pairs}
    for name in sorted(expected)[process::count]:
        if found := not_a_file(folder / name):
            return f"{name} {found}"
        try:
            if digest(folder / name) != expected[name]:
                return f"{name} is altered"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
    return None


def unreadable(folder: epath.Path) -> str | None:
    """Returns which file below a local folder cannot be opened, and why, or None. Nothing is read: a pipe would hang.

    Object storage has nothing but files.
    """
    if not files.is_local(folder):
        return None
    try:
        for path in sorted(folder.iterdir()):
            inner = unreadable(path) if path.is_dir() else not_a_file(path)
            if inner:
                return f"{path.name}{'/' if path.is_dir() else ' '}{inner}"
    except OSError as error:
        return f"cannot be listed: {error.strerror or error}"
    return None


def not_a_file(path: epath.Path) -> str | None:
    """What keeps a path from being read as a file, as a predicate, or None."""
    if not files.is_local(path):
        return None if path.exists() else "is missing"
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return "is missing" if error.errno == errno.ENOENT else f"cannot be read: {error.strerror}"
    return None if stat.S_ISREG(mode) else "is not a file"


def digest(path: epath.Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: epath.Path, prefix: str = "") -> list[str]:
    """Returns the names, relative to the folder, of all files below it but manifests, sorted."""
    names = []
    for path in folder.iterdir():
        name = f"{prefix}{path.name}"
        if path.is_dir():
            names += _files(path, f"{name}/")
        elif not OWN.fullmatch(name):
            names.append(name)
    return sorted(names)


def _last_line(lines: str) -> str:
    return f"# {hashlib.sha256(lines.encode()).hexdigest()}\n"
