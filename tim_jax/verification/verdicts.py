"""Lines of the table, with their verdicts."""

import dataclasses
from collections.abc import Mapping
from typing import Any

OK, SLOW, WRONG = "ok", "slow", "wrong"
VERDICTS = (OK, SLOW, WRONG)  # from the best to the worst


@dataclasses.dataclass(frozen=True)
class Line:
    """One thing that was checked.

    Attributes:
        what: What it is.
        measured: What was found, as text.
        limit: What it had to be, as text; "" where any value will do.
        verdict: Of VERDICTS.
        figures: Numbers of it by name, in SI units.
    """

    what: str
    measured: str
    limit: str
    verdict: str
    figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        """The line without a table around it."""
        limit = f" ({self.limit})" if self.limit else ""
        return f"{self.verdict}: {self.what}: {self.measured}{limit}"


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """One thing that was not checked, and why."""

    what: str
    why: str

    def __str__(self) -> str:
        return f"left out: {self.what}: {self.why}"


def worst(verdicts: Any) -> str:
    """Returns the worst of some verdicts; OK of none."""
    return max(verdicts, key=VERDICTS.index, default=OK)


def slow_unless(good: bool) -> str:
    """Returns the verdict on a speed."""
    return OK if good else SLOW


def wrong_unless(good: bool) -> str:
    """Returns the verdict on a number."""
    return OK if good else WRONG
