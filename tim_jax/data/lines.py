"""The lines of a manifest: where those of a JSONL file end, and the rows of a CSV file as such lines."""

import csv
import io
import json

import numpy as np
from etils import epath

from tim_jax.data import tables
from tim_jax.data.sources.base import Location, digest
from tim_jax.data.stamps import stamp
from tim_jax.system.progress import Bar

BLOCK = 2**24


def index_lines(path: epath.Path, directory: str) -> epath.Path:
    """Finds where the lines of a file end, once for each state of the file.

    Args:
        path: the file.
        directory: the folder that the table of line ends is written below.

    Returns:
        The folder of that table, which has one column, `end`.
    """
    length, changed = stamp(path)
    folder = epath.Path(directory).expanduser() / f"lines-{digest('lines 1', str(path), length, changed)}"
    if not tables.exists(folder):
        with (
            tables.writing(folder, end=np.int64) as writer,
            path.open("rb") as file,
            Bar(total=length, desc=f"lines of {path.name}", unit="B", unit_scale=True, delay=1) as progress,
        ):
            start, last = 0, b"\n"
            while block := file.read(BLOCK):
                writer.append(end=np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + start + 1)
                start, last = start + len(block), block[-1:]
                progress.update(len(block))
            if last != b"\n":  # the last line has no end
                writer.append(end=start)
            writer.meta["state"] = digest(length, changed)
    return folder


def lines_of_csv(at: Location, path: epath.Path) -> epath.Path:
    """The rows of a CSV file as JSONL, written once for each state of the file. Raises ValueError for another file."""
    folder = epath.Path(at.directory).expanduser() / f"rows-{digest('rows 1', str(path), *stamp(path))}"
    lines = folder / "lines.jsonl"
    if tables.exists(folder):
        return lines
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{at.key} is {at.path!r}; its {path.name} must be CSV in UTF-8, and is not: {error}"
        ) from None
    with tables.writing(folder) as writer:
        writer.write_text(lines.name, "".join(json.dumps(row) + "\n" for row in rows))
    return lines
