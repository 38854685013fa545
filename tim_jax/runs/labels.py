"""Labels by name: what classes are called in pictures, and labels that are given as names or numbers.

The names are those that a workdir keeps (`workdir.class_names`).
"""

import csv
import difflib
import json
import re
from collections.abc import Sequence

import numpy as np

from tim_jax.system import paths

WORDNET = re.compile(r"n\d{8}\s+(?=\S)")  # an identifier before a name
NUMBER = "#"  # before a label that is meant as a number where a class is called like another number


def captions(conditions: Sequence[str | int] | np.ndarray, names: Sequence[str]) -> list[str]:
    """What pictures of some conditions are called: prompts themselves, labels by name where they have one.

    Args:
        conditions: prompts or labels.
        names: of the labels, or ().
    """
    return [text if isinstance(text, str) else name_of(int(text), names) for text in conditions]


def name_of(label: int, names: Sequence[str]) -> str:
    """The name of a label, its number where it has none."""
    return names[label] if label < len(names) else str(label)


def read_labels(text: str, names: Sequence[str], num_classes: int, flag: str = "--labels") -> list[int]:
    """Reads the labels of a flag: names and numbers with commas between, a name with commas in quotes.

    Raises ValueError for what is neither.
    """
    try:
        parts = next(csv.reader([text], skipinitialspace=True), [])
    except csv.Error:
        raise ValueError(f"{flag} is {text!r}; it must be one line of names or numbers, with commas between") from None
    return [label_of(part.strip(), names, num_classes, f"{flag} has") for part in parts]


def read_names(path: str, num_classes: int) -> tuple[str, ...]:
    """Reads a file of names, in the order of their labels.

    Args:
        path: a name on each line, or a JSON list (.json). What ImageNet's own lists begin lines with, such as
            "n01440764 tench, Tinca tinca", is left out.
        num_classes: how many there may be at most.

    Raises:
        ValueError: one line.
    """
    file = paths.given(path, "--classes")
    try:
        text = file.read_text()
        names = json.loads(text) if file.suffix == ".json" else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(f"--classes is {path!r}, which cannot be read: {error}") from None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"--classes is {path!r}; it must hold a name on each line, or a JSON list of names")
    if len(names) > num_classes or len(set(names)) < len(names):
        raise ValueError(
            f"--classes is {path!r}; it must hold at most {num_classes} names, each once, and holds {len(names)}, of "
            f"which {len(set(names))} differ"
        )
    return tuple(WORDNET.sub("", name) for name in names)


def label_of(given: object, names: Sequence[str], num_classes: int, where: str) -> int:
    """The label that a name or a number stands for.

    A text is first of all the name of a class, then a number, then a name in other letters: capitals do not count, "_"
    and "-" are spaces, and each of the names in "tench, Tinca tinca" will do. "#3" is a number in any case.

    Args:
        given: a whole number or a text.
        names: of the labels, or ().
        num_classes: labels lie below it.
        where: what was given as, to begin errors with, such as "--labels has".

    Raises:
        ValueError: one line that says what there is.
    """
    if isinstance(given, str):
        if given in names:
            return names.index(given)
        number = given.removeprefix(NUMBER)
        if not re.fullmatch(r"[+-]?\d+", number, re.ASCII):
            return _by_other_letters(given, names, num_classes, where)
        given = int(number)
    if isinstance(given, bool) or not isinstance(given, int | np.integer) or not 0 <= given < num_classes:
        raise ValueError(f"{where} {given!r}; labels of this run lie in 0 … {num_classes - 1}")
    return int(given)


def _folded(text: str) -> str:
    return " ".join(text.casefold().replace("_", " ").replace("-", " ").split())


def _by_other_letters(given: str, names: Sequence[str], num_classes: int, where: str) -> int:
    if not names:
        raise ValueError(
            f"{where} {given!r}; classes of this run have no names, and labels are whole numbers in 0 … "
            f"{num_classes - 1}, such as 1,4,32"
        )
    known: dict[str, list[str]] = {}
    for name in names:
        for part in {_folded(name), *map(_folded, name.split(","))}:
            known.setdefault(part, []).append(name)
    found = known.get(_folded(given), [])
    if len(found) == 1:
        return names.index(found[0])
    if found:
        raise ValueError(f"{where} {given!r}, which several classes are called: {', '.join(map(repr, found))}")
    near = difflib.get_close_matches(_folded(given), known, n=3, cutoff=0.6)
    what = "did you mean" if near else "there are"
    shown = list(dict.fromkeys(name for part in near for name in known[part])) or [*names[:3], *["…"][: len(names) > 3]]
    listed = ", ".join(name if name == "…" else repr(name) for name in shown)
    raise ValueError(f"{where} {given!r}, which is no class of this run; {what} {listed}{'?' if near else ''}")


def repeated(values: np.ndarray, count: int) -> np.ndarray:
    """(count, …) of the values (n, …), taken in turn and over again where they are fewer."""
    return values[np.arange(count) % len(values)]


def cycle_labels(num_classes: int, count: int) -> np.ndarray:
    """(count,) labels, every class in turn."""
    return (np.arange(count) % num_classes).astype(np.int32)
