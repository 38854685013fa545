"""Pairs of images of which one was preferred: a JSONL file with a line for each pair.

    {"images": ["a.png", "b.png"], "choice": 0, "label": 3, "reward": 0.7}

`images` names two files, as manifests do, and `choice` is the index of the one that was preferred, null for a tie; ties
are left out. The condition of both is a `label`, or a text under `prompt` or another key of manifest.py, and `reward`
that of the preferred image. Label, text and reward are in all lines or in none. All lines are read when a file is first
opened, and one that is wrong is refused with its number; an image that is wrong is a bad record.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from tim_jax.data import splits, tables
from tim_jax.data.bad_records import BadRecord
from tim_jax.data.decode import decode
from tim_jax.data.sources.base import EncodedImages, Example, Location, Raw, checked_captions, digest, read_file
from tim_jax.data.sources.manifest import CAPTIONS, inside
from tim_jax.data.stamps import stamp, stamps_of_some
from tim_jax.system import files

PARTS = ("label", "caption", "reward")  # of a line, which all have or none
TIES = "pairs without a choice"
MOST = 1e30  # below which rewards are, so that they are numbers in single precision


@dataclasses.dataclass(frozen=True)
class PreferenceSource(EncodedImages):
    """The pairs of a JSONL file: "image" is the winner of each, and "loser" the other.

    Attributes:
        file: it names images relative to its own folder.
        index: the table of its pairs, see `index_pairs`.
        classes: labels lie below it; 0 says that they are not read.
        with_captions: whether texts are read, where there are any.
        channels: channels of the images to make.
    """

    file: str
    index: str
    classes: int = 0
    with_captions: bool = True
    channels: int = 3

    @functools.cached_property
    def _table(self) -> tables.Table:
        return tables.Table(epath.Path(self.index))

    @functools.cached_property
    def _root(self) -> epath.Path:
        return epath.Path(self.file).parent

    @property
    def name(self) -> str:
        return self._root.name

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        return None, None, self.channels

    @property
    def num_classes(self) -> int:
        return self.classes if "label" in self._table.meta["parts"] else 0

    @property
    def captions(self) -> bool:
        return self.with_captions and "caption" in self._table.meta["parts"]

    @property
    def preference(self) -> tuple[str, ...]:
        return ("loser", "reward") if "reward" in self._table.meta["parts"] else ("loser",)

    @property
    def left_out(self) -> dict[str, int]:
        ties = self._table.meta["ties"]
        return {TIES: ties} if ties else {}

    def __len__(self) -> int:
        return len(self._table["line"])

    def identity(self, i: int) -> str:
        return f"{epath.Path(self.file).name}:{self._table['line'][i]}"

    def stable_names(self, start: int, stop: int) -> list[str]:
        return [" ".join(self._pair(i)["images"]) for i in range(start, stop)]

    def _pair(self, i: int) -> dict[str, Any]:
        """Pair i as `pair_of` gives it. Raises BadRecord if the file has changed since."""
        start, end = int(self._table["start"][i]), int(self._table["end"][i])
        try:
            with epath.Path(self.file).open("rb") as file:
                file.seek(start)
                return pair_of(file.read(end - start), str(self._root))
        except (OSError, ValueError) as error:
            raise BadRecord("metadata", str(error)) from None

    def _encoded(self, pair: dict[str, Any], which: int, max_bytes: int = -1) -> bytes:
        return read_file(self._root / pair["images"][which], max_bytes)

    def raw(self, i: int, max_bytes: int = -1) -> Raw:
        pair = self._pair(i)
        return self._raw(pair, self._encoded(pair, pair["choice"], max_bytes))

    def _raw(self, pair: dict[str, Any], encoded: bytes) -> Raw:
        return Raw(encoded, pair.get("label"), pair.get("caption"))

    def read(self, i: int) -> Example:
        pair = self._pair(i)
        winner, loser = (self._encoded(pair, which) for which in (pair["choice"], 1 - pair["choice"]))
        example = self.checked(self._raw(pair, winner)) | {"index": int(i)}
        example |= {name: decode(image, self.channels) for name, image in (("image", winner), ("loser", loser))}
        return example | ({"reward": pair["reward"]} if "reward" in pair else {})

    @property
    def labels_at_hand(self) -> bool:
        return True

    def labels(self, examples: np.ndarray) -> np.ndarray:
        found = self._table["label"][examples].astype(np.int64)
        return np.where(found < self.num_classes, found, -1) if self.num_classes else np.zeros_like(found)

    def fingerprint(self) -> str:
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        """Of the file, and of some of its winners, which tell that images were changed."""
        some = stamps_of_some(len(self), self._winner, not files.is_local(self._root))
        about = (self.classes, self.with_captions, self.channels)
        return digest("preferences", self.file, self._table.meta["state"], len(self), some, *about)

    def _winner(self, i: int) -> epath.Path:
        pair = self._pair(i)
        return self._root / pair["images"][pair["choice"]]


def pair_of(line: bytes, root: str) -> dict[str, Any]:
    """A line as {"images": two paths from the root, "choice": 0, 1 or None, and those of PARTS that it has}.

    Raises ValueError that says what the line must be.
    """
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("must be JSON") from None
    entry = entry if isinstance(entry, dict) else {}
    names, choice = entry.get("images"), entry.get("choice", "missing")
    if not isinstance(names, list) or len(names) != 2 or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"must have the names of two files as 'images', and has {names!r:.80}")
    if choice is not None and (type(choice) is not int or choice not in (0, 1)):
        raise ValueError(f"must have 0, 1 or, for a tie, null as 'choice', and has {choice!r:.80}")
    try:
        pair: dict[str, Any] = {"images": [inside(root, name) for name in names], "choice": choice}
    except BadRecord as error:
        raise ValueError(f"must name images in its own folder, and has {error.detail!r}") from None
    if (text := next((entry[key] for key in CAPTIONS if entry.get(key) is not None), None)) is not None:
        try:
            pair["caption"] = checked_captions(text)
        except BadRecord as error:
            raise ValueError(f"must have a text, and has {error.detail}") from None
    label, reward = entry.get("label"), entry.get("reward")
    if label is not None:
        if type(label) is not int or not 0 <= label < 2**31:
            raise ValueError(f"must have a whole number as 'label', and has {label!r:.80}")
        pair["label"] = label
    if reward is not None:
        if type(reward) not in (int, float) or not abs(reward) < MOST:
            raise ValueError(f"must have a finite number as 'reward', and has {reward!r:.80}")
        pair["reward"] = float(reward)
    return pair


def index_pairs(at: Location, path: epath.Path) -> epath.Path:
    """Reads all lines of a file, once for each state of it.

    Args:
        at: names the file; the table is written below its directory.
        path: the file.

    Returns:
        The folder of the table of all pairs with a choice: their number, beginning and end, and their label.

    Raises:
        ValueError: a line is wrong, or no line has a choice.
    """
    state = digest("pairs 1", str(path), *stamp(path))
    folder = epath.Path(at.directory).expanduser() / f"preferences-{state}"
    if tables.exists(folder):
        return folder
    with tables.writing(folder, line=np.int64, start=np.int64, end=np.int64, label=np.int64) as writer:
        parts: tuple[str, ...] | None = None
        ties, rows = 0, []
        for number, start, end, pair in _pairs(at, path):
            if pair["choice"] is None:
                ties += 1
                continue
            here = tuple(name for name in PARTS if name in pair)
            parts = here if parts is None else parts
            if here != parts:
                first, this = (", ".join(names) or "none" for names in (parts, here))
                must = f"must have of {', '.join(PARTS)} what the lines before it have, {first}, and has {this}"
                raise _wrong(at, path, number, must)
            rows.append((number, start, end, pair.get("label", 0)))
        if parts is None:
            raise ValueError(f"{at.key} is {at.path!r}; {path.name} must have at least one line with a choice")
        columns = np.array(rows, np.int64).T
        writer.append(**dict(zip(("line", "start", "end", "label"), columns, strict=True)))
        writer.meta |= {"parts": parts, "ties": ties, "state": state}
    return folder


def _pairs(at: Location, path: epath.Path) -> Iterator[tuple[int, int, int, dict[str, Any]]]:
    """(number, beginning, end, pair) of every line that is not empty. Raises ValueError for one that is wrong."""
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            end = start + len(line)
            if line.strip():
                try:
                    yield number, start, end, pair_of(line, str(path.parent))
                except ValueError as error:
                    raise _wrong(at, path, number, str(error)) from None
            start = end


def _wrong(at: Location, path: epath.Path, number: int, must: str) -> ValueError:
    return ValueError(f"{at.key} is {at.path!r}; line {number} of {path.name} {must}")


def open_preferences(at: Location) -> PreferenceSource:
    """Opens the pairs of a JSONL file.

    Args:
        at: its path is the file, or a folder that holds exactly one for each part of the data.

    Raises:
        ValueError: there is no such file, there are several, or it has a wrong line.
    """
    found = splits.files_of_split(at, (".jsonl",))
    if len(found) != 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{at.key} is {at.path!r}; it must hold one JSONL file, but holds {names}")
    return PreferenceSource(str(found[0]), str(index_pairs(at, found[0])), at.num_classes, at.captions, at.channels)
