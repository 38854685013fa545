"""Where the time since a workdir's first start went, over all of its starts: a pure function of what they recorded.

A start records, again and again, for how long it did what (see goodput.py). Between the last sign of one start and the
beginning of the next the run was down. A checkpoint carries the seconds of the steps that led to it. What a start had
made beyond the checkpoint from which the next one goes on is made again: those seconds are of steps done twice.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from tim_jax.system import jsonl

FILE = "goodput.jsonl"
STEPS, REPEATED, DOWN, UNRECORDED, UNKNOWN = "steps", "repeated", "down", "unrecorded", "unknown"
CLOCKS = 2.0  # seconds by which the clocks of two machines may differ, and a time that is recorded in whole seconds
ACTIVITIES = {  # what a start does at any moment
    "start": "starting",
    "compile": "compiling",
    "restore": "restoring",
    "data": "waiting for data",
    "save": "saving",
    "evaluate": "evaluating and sampling",
    STEPS: "steps",
}
KINDS = ACTIVITIES | {
    REPEATED: "steps done twice",
    DOWN: "down between starts",
    UNRECORDED: "not recorded",
    UNKNOWN: "not known, as the clock went backwards",
}


def ledger(starts: Sequence[Mapping[str, Any]], first_start: float | None = None) -> dict[str, float]:
    """Returns seconds by the names in KINDS, which together are the time from the first start to the last sign of life.

    Clocks of machines are compared between starts alone. Where one went backwards in between, nobody knows for how long
    the run was down: UNKNOWN is then NaN, and 0 otherwise, so that a sum of all is a number only where all is known.
    Lines that are not whole are passed over: their time is down, but for steps that a later checkpoint shows.

    Args:
        starts: For each start, in their order: `began` and `seen`, when it began and when it was last heard of, in
            seconds since the epoch; `seconds` by the names in ACTIVITIES; `carried`, the seconds of steps that had
            led to the state from which it went on, absent while that is not known; `done`, whether the run had made
            its last step, after which it is not down.
        first_start: When the run was first started, in seconds since the epoch; None where the first line says it. What
            lies before the first line has not been recorded, but for the steps whose seconds were carried.
    """
    starts = [start for start in starts if is_whole(start)]
    found = dict.fromkeys(KINDS, 0.0)
    if not starts:
        return found
    for start in starts:
        for kind in ACTIVITIES:
            found[kind] += start["seconds"].get(kind, 0.0)
    carried = starts[0].get("carried", 0.0)
    found[STEPS] += carried
    if first_start is not None:
        before = starts[0]["began"] - first_start - carried
        # The first start of all begins before it is on record as a start, and ends after that. What it has carried is
        # from another workdir, of which a checkpoint was copied.
        is_first = starts[0]["began"] <= first_start <= starts[0]["seen"] + CLOCKS
        found[UNKNOWN] = math.nan if before < -CLOCKS and not is_first else 0.0
        found[UNRECORDED] = max(0.0, before)
    reached = carried + starts[0]["seconds"].get(STEPS, 0.0)
    for before, after in itertools.pairwise(starts):
        down = after["began"] - before["seen"]
        if before.get("done"):
            down = 0.0
        elif down < -CLOCKS:
            found[UNKNOWN] = math.nan
        down = max(0.0, down)
        again = reached - after.get("carried", reached)
        if again < 0:  # steps of the last seconds before a kill, which were saved and not recorded
            again = -min(-again, down)
            down += again
        else:
            found[REPEATED] += again
        found[STEPS] -= again
        found[DOWN] += down
        reached = after.get("carried", reached) + after["seconds"].get(STEPS, 0.0)
    return found


def share(seconds: Mapping[str, float]) -> float:
    """The share of the time that went into steps which count, in [0, 1]; NaN where it is not known."""
    total = sum(seconds.values())
    return seconds.get(STEPS, 0.0) / (total if math.isnan(total) else max(total, 1e-9))


def read(workdir: epath.Path) -> list[dict[str, Any]]:
    """Returns what the starts of a workdir's run have recorded; [] where that is nothing, or cannot be read."""
    try:
        return [start for start in jsonl.read(workdir / FILE) if is_whole(start)]
    except OSError:
        return []


def is_whole(start: Mapping[str, Any]) -> bool:
    """Whether what a start recorded can be counted with."""
    seconds = start.get("seconds")
    if not isinstance(seconds, Mapping):
        return False
    numbers = [start.get("began"), start.get("seen"), start.get("carried", 0.0), *seconds.values()]
    return all(isinstance(value, int | float) and math.isfinite(value) and value >= 0 for value in numbers)


def told(seconds: Mapping[str, float]) -> str:
    """Returns the ledger in one line: the share, the time in all, and what took a thousandth of it or more."""
    known = {kind: value for kind, value in seconds.items() if not math.isnan(value)}
    total = sum(known.values())
    shares = {KINDS[kind]: value / max(total, 1e-9) for kind, value in known.items() if kind != STEPS}
    largest = sorted((item for item in shares.items() if item[1] >= 0.001), key=lambda item: -item[1])
    others = [f"{name} {value:.1%}" for name, value in largest]
    if len(known) < len(seconds):
        others.append("more between starts, when the clock went backwards, is not known")
    at_most, at_least = ("at most ", "at least ") if len(known) < len(seconds) else ("", "")
    said = f"goodput {at_most}{share(known):.1%} of {at_least}{duration(total)}"
    return said + (f" ({', '.join(others)})" if others else "")


def duration(seconds: float) -> str:
    """Returns how long something took."""
    for size, unit, places in ((86400, "d", 1), (3600, "h", 1), (60, "min", 0 if seconds > 600 else 1)):
        if seconds >= size:
            return f"{seconds / size:.{places}f} {unit}"
    return f"{seconds:.0f} s"
