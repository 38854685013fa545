"""The parts of a data set: those that it has, by the names of files and folders, or a share that is held out.

Hubs name files and folders by the part that they belong to: `train-00000.parquet`, `imagenet-val-00.tar`, `test/`.
Where there are no such names, all examples are the part "train". With a share to hold out, an example of "train"
belongs to "held_out" instead if the hash of its name, a number in [0, 1), lies below the share. So no example is in two
parts, and what is added to the data moves none.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from etils import epath

from tim_jax.data import tables
from tim_jax.data.bad_records import BadRecord
from tim_jax.data.sources.base import Example, Location, Source, View, digest
from tim_jax.system.progress import Bar

TRAIN, HELD_OUT = "train", "held_out"
# Names of parts that are not trained on, that which is taken first in front.
NOT_TRAINED_ON = (HELD_OUT, "holdout", "validation", "valid", "val", "dev", "test", "testing", "eval")
NAMES = (TRAIN, "training", *NOT_TRAINED_ON)
IN_FILE_NAME = re.compile(rf"(?:^|[-_. ])({'|'.join(sorted(NAMES, key=len, reverse=True))})(?=$|[-_. 0-9])")
CHUNK = 2**16


class NoFiles(ValueError):
    """There are no files of the kind that the data is to have."""


class UnknownSplit(ValueError):
    """The data has no part of that name."""


class NothingToHoldOut(ValueError):
    """A share is to be held out of data that has parts of its own, or too few examples."""


def own_split(at: Location, own: Collection[str] = (TRAIN,)) -> str:
    """The part of the data itself that the part `at.split` is, or is taken from.

    Args:
        at: names the part.
        own: names of the parts that the data has.

    Raises:
        UnknownSplit: there is no such part.
        NothingToHoldOut: a share is to be held out of data that has a part "held_out", or none to take it from.
    """
    what = at.path or "this source"
    if at.held_out_share and (HELD_OUT in own or TRAIN not in own):
        raise NothingToHoldOut(
            f"data.held_out_share is {at.held_out_share}; it must be 0, as {what} has the parts {', '.join(own)}"
        )
    names = (*own, HELD_OUT) if at.held_out_share else tuple(own)
    if at.split not in names:
        more = "" if HELD_OUT in names else f"; data.held_out_share above 0 makes a part {HELD_OUT!r}"
        raise UnknownSplit(
            f"{at.split_key} is {at.split!r}; it must be one of {', '.join(names)}, the parts of {what}{more}"
        )
    return TRAIN if at.held_out_share and at.split == HELD_OUT else at.split


def split_of_folder(name: str) -> str | None:
    """The part that a folder holds by its name, None for any other folder."""
    return name.lower() if name.lower() in NAMES else None


def by_split(paths: Sequence[epath.Path], at: Location) -> dict[str, list[epath.Path]]:
    """Files by the part that their names tell: {"": all of them} unless they tell two parts or more.

    Raises ValueError if only some of the names tell one.
    """
    found: dict[str, list[epath.Path]] = {}
    for path in paths:
        told = IN_FILE_NAME.search(path.name.lower())
        found.setdefault(told[1] if told else "", []).append(path)
    if len(found.keys() - {""}) < 2:
        return {"": list(paths)} if paths else {}
    if "" in found:
        raise ValueError(
            f"{at.key} is {at.path!r}; it must hold no file beside those of {', '.join(sorted(found.keys() - {''}))} "
            f"whose name does not tell its part, as {found[''][0].name} does not"
        )
    return found


def files_of_split(at: Location, endings: tuple[str, ...]) -> list[epath.Path]:
    """The sorted files of `at.split`; the root alone if it is a file.

    They lie in the root, or in folders named by parts, or, as on hubs, in a folder `data`.

    Args:
        at: its path is a file or a folder.
        endings: of the files that count, in lower case.

    Raises:
        NoFiles: there are none.
        ValueError: there is no such part.
    """
    found = _files_by_split(at, at.root, endings)
    if not found and (at.root / "data").is_dir():
        found = _files_by_split(at, at.root / "data", endings)
    if not found:
        verb = "hold files that end" if at.root.is_dir() else "be a file that ends"
        raise NoFiles(f"{at.key} is {at.path!r}; it must {verb} in {' or '.join(endings)}")
    if found.keys() == {""}:
        own_split(at)
        return found[""]
    return found[own_split(at, found)]


def _files_by_split(at: Location, root: epath.Path, endings: tuple[str, ...]) -> Mapping[str, list[epath.Path]]:
    if not root.is_dir():
        return {"": [root]} if root.name.lower().endswith(endings) else {}
    if here := _files(root, endings):
        return by_split(here, at)
    folders = {name: path for path in sorted(root.iterdir()) if (name := split_of_folder(path.name)) and path.is_dir()}
    return {name: inside for name, path in folders.items() if (inside := _files(path, endings))}


def _files(folder: epath.Path, endings: tuple[str, ...]) -> list[epath.Path]:
    return sorted(p for p in folder.iterdir() if p.name.lower().endswith(endings) and not p.name.startswith("."))


def place(name: str) -> float:
    """The hash of a name, in [0, 1)."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:7], "big") / 2**56


def part_of(source: Source, at: Location) -> Source:
    """The part `at.split` of a source, where a share is held out of it; otherwise the source.

    Args:
        source: as it was opened for `own_split`.
        at: names the part and the share; the table of the part's examples is written below its directory.

    Raises:
        NothingToHoldOut: the part is empty.
    """
    if not at.held_out_share or at.split not in (TRAIN, HELD_OUT):
        return source
    key = digest("part 1", source.fingerprint(), at.split, at.held_out_share)
    folder = epath.Path(at.directory).expanduser() / f"part-{key}"
    if not tables.exists(folder):
        progress = Bar(total=len(source), desc=f"parts of {source.name}", unit=" examples", unit_scale=True, delay=1)
        with tables.writing(folder, row=np.int64) as writer, progress:
            for start in range(0, len(source), CHUNK):
                stop = min(start + CHUNK, len(source))
                places = np.array([place(name) for name in source.stable_names(start, stop)])
                writer.append(row=start + np.flatnonzero((places < at.held_out_share) == (at.split == HELD_OUT)))
                progress.update(stop - start)
    part = Part(source, str(folder), at.split, at.held_out_share)
    if not len(part):
        raise NothingToHoldOut(
            f"data.held_out_share is {at.held_out_share}; it must leave something to {at.split!r}, and of the "
            f"{len(source)} examples of {source.name} none is in it"
        )
    return part


@dataclasses.dataclass(frozen=True)
class Part(View):
    """The examples of a source that are held out, or those that are not.

    Attributes:
        source: of all examples.
        table: the folder of the table of the part's examples.
        split: "train" or "held_out".
        share: that is held out.
    """

    table: str = ""
    split: str = TRAIN
    share: float = 0.0

    @functools.cached_property
    def _rows(self) -> np.ndarray:
        return tables.Table(epath.Path(self.table))["row"]

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, i: int) -> Example:
        return self.source.read(int(self._rows[i])) | {"index": int(i)}

    def annotations(self, i: int) -> Example:
        return self.source.annotations(int(self._rows[i]))

    def labels(self, examples: np.ndarray) -> np.ndarray:
        return self.source.labels(self._rows[examples])

    def header(self, i: int) -> tuple[int, int]:
        return self.source.header(int(self._rows[i]))

    def headers(self, start: int, stop: int) -> list[tuple[int, int] | BadRecord]:
        rows = np.asarray(self._rows[start:stop])
        found: list[tuple[int, int] | BadRecord] = []
        for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):  # examples that lie side by side
            found += self.source.headers(int(run[0]), int(run[-1]) + 1)
        return found

    def identity(self, i: int) -> str:
        return self.source.identity(int(self._rows[i]))

    def stable_names(self, start: int, stop: int) -> list[str]:
        return [self.source.stable_names(row, row + 1)[0] for row in self._rows[start:stop].tolist()]

    def fingerprint(self) -> str:
        return digest("part", self.source.fingerprint(), self.split, self.share)

    def former_fingerprint(self) -> str:
        return self.fingerprint()  # there were none
