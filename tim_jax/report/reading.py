"""Reads what a folder holds. What is damaged is left out and noted, so that the page shows the rest."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, TypeGuard

from etils import epath

from tim_jax.report.markup import Markup, Section, missing
from tim_jax.system import jsonl

WRONG = (KeyError, IndexError, TypeError, ValueError, AttributeError, OSError)  # of files that are not as written


@dataclasses.dataclass
class Folder:
    """The files of a run or of an ablation.

    Attributes:
        path: of the folder.
        damaged: what could not be read, a line each.
    """

    path: epath.Path
    damaged: list[str] = dataclasses.field(default_factory=list)
    _read: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the folder is called."""
        return self.path.resolve().name if "://" not in str(self.path) else self.path.name

    def bytes(self, name: str) -> bytes | None:
        """Returns a file, None if it is not there or cannot be read."""
        path = self.path / name
        try:
            return path.read_bytes() if path.exists() else None
        except OSError as error:
            self.note(name, error.strerror or str(error))
            return None

    def json(self, name: str, kind: type = dict) -> Any:
        """Returns what a JSON file holds, None if it is not there or is damaged. kind: of its outermost value."""
        content = self.bytes(name)
        if content is None:
            return None
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):  # also for bytes that are no text
            self.note(name, "no JSON")
            return None
        if not isinstance(value, kind):
            self.note(name, f"a {type(value).__name__} in place of a {kind.__name__}")
            return None
        return value

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Returns the objects of a file with one on each line; lines that are none are left out and noted."""
        if name in self._read:
            return self._read[name]
        values = list(jsonl.objects(self.bytes(name) or b""))
        self._read[name] = [value for value in values if value is not None]
        if broken := values.count(None):
            self.note(name, jsonl.left_out(broken))
        return self._read[name]

    def note(self, name: str, reason: str) -> None:
        """Notes that a file is damaged."""
        line = f"{name}: {reason}"
        if line not in self.damaged:
            self.damaged.append(line)

    def section(self, anchor: str, title: str, make: Callable[[], Markup], remedy: str = "") -> Section:
        """Returns a section; where its files are not as they were written, what it says is that.

        Args:
            anchor: of the section.
            title: of the section.
            make: gives its body.
            remedy: the command that writes its files anew.
        """
        try:
            return Section(anchor, title, make())
        except WRONG as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            self.note(title, reason)
            what = f"This could not be shown ({reason})."
            return Section(anchor, title, missing(f"{what} Anew:" if remedy else what, remedy))


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of a file is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
