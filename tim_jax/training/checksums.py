"""Checksums of a folder, in the form of `sha256sum`, so that one altered byte in any of its files is found.

Process p of P writes `manifest-p-of-P.sha256` for every P-th file; the last line is a checksum of the lines before it.
"""

import hashlib
import re

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
    """Returns what is wrong with a folder that has a manifest, or None: a file is missing, altered or cut short.

    Args:
        folder: Which folder.
        process: Number of this process, from 0 on. It checks all manifests, and every `count`-th of the other files.
        count: Number of processes.
    """
    expected: dict[str, str] = {}
    for path in sorted(path for path in folder.iterdir() if NAME.fullmatch(path.name)):
        lines, mark, last = path.read_bytes().decode("utf-8", "replace").rpartition("# ")
        if mark + last != _last_line(lines):
            return f"{path.name} is altered"
        expected |= {name: sha for sha, name in (line.split("  ", 1) for line in lines.splitlines())}
    for name in sorted(expected)[process::count]:
        if not (folder / name).exists():
            return f"{name} is missing"
        if digest(folder / name) != expected[name]:
            return f"{name} is altered"
    return None


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
