"""After which steps a run saves: every so many, or, with `checkpoint.every=auto`, as soon as the last save has ended.

Saves that take D seconds each and follow one another at once bound the work that a kill loses by 2 D: the state that a
save began with is the last that can be gone on from until the next save has ended. Where saves would hold up the steps
for more than a share s of the time, the next one begins c / s seconds after the last began, c being the seconds by
which a save holds them up. The bound is then D + max(D, c / s), and the step that is under way.
"""

import collections
import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from tim_jax.training.settings import CheckpointSettings

AUTO = "auto"
FIRST = 3  # steps without a save before the first one, which tell what a step takes
REMEMBERED = 5  # saves whose median cost is taken, so that one which met a slow disk does not put off the next for long
USUAL = 64  # steps without a save whose median duration is a step's usual one
RETRY = 60.0  # seconds from the beginning of a save that failed to the next


@dataclasses.dataclass(frozen=True)
class Save:
    """A save that has ended.

    Attributes:
        began: When, in seconds of any clock.
        cost: Seconds by which it held up the steps.
        failed: Whether it could not be written.
    """

    began: float
    cost: float
    failed: bool = False


def earliest(saves: Sequence[Save], max_share: float) -> float:
    """Returns when the next save may begin, by the clock of the last ones; minus infinity before the first.

    Args:
        saves: Those that have ended, in order.
        max_share: Share of the time by which saves may hold up the steps, in (0, 1].
    """
    if not saves:
        return -float("inf")
    last = saves[-1]
    cost = statistics.median(save.cost for save in saves[-REMEMBERED:])
    return last.began + max(cost / max_share, RETRY if last.failed else 0.0)


def slowed(during: Sequence[float], usual: Sequence[float]) -> float:
    """Returns by how many seconds the steps during a save took longer than as many usual ones, at least 0.

    Args:
        during: Seconds of each step during the save.
        usual: Seconds of steps without one.
    """
    return max(0.0, sum(during) - len(during) * statistics.median(usual)) if usual else 0.0


class Saves(Protocol):
    """Who saves, in the background."""

    failures: list[str]

    @property
    def busy(self) -> bool:
        """Whether a save has not ended."""

    @property
    def seconds(self) -> float | None:
        """What the last good save took until it could be gone on from, or None."""

    @property
    def proof_seconds(self) -> float | None:
        """What of it went into the proof that it can be restored, or None."""


class Cadence:
    """Says after which steps a run saves, and what that costs.

    With several processes the first one's word counts, which the loop passes on: it alone is asked for `wish`.
    """

    def __init__(self, settings: CheckpointSettings, saver: Saves, clock: Callable[[], float] = time.perf_counter):
        """Args:
        settings: How often.
        saver: Who saves.
        clock: Returns the time in seconds.
        """
        self._settings, self._saver, self._clock = settings, saver, clock
        self._saves: collections.deque[Save] = collections.deque(maxlen=REMEMBERED)
        self._usual: collections.deque[float] = collections.deque(maxlen=USUAL)
        self._during: list[float] = []  # seconds of the steps since the save that has not ended began
        self._open: Save | None = None  # that save, with what it has cost so far
        self._failures = 0  # of saves before it
        self._wished = False  # whether a save was asked for that has not begun
        self._spent = 0.0
        self._first = self._since = clock()

    @property
    def _auto(self) -> bool:
        return self._settings.every == AUTO

    def planned(self, step: int) -> bool:
        """Whether the configuration alone says that this step is saved; with `auto` those that stay for good are."""
        every, keep_every = self._settings.every, self._settings.keep_every
        every = every if isinstance(every, int) else keep_every
        return bool(every) and step % every == 0

    def wish(self, step: int) -> bool:
        """Whether a save should begin, of which nobody has been told yet; is called after every step."""
        if not self._auto:
            return False
        self._take()
        if self._wished or self._open or len(self._usual) < FIRST or self.planned(step):
            return False
        self._wished = self._clock() >= earliest(tuple(self._saves), self._settings.max_share)
        return self._wished

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """A context in which the saver takes over a state."""
        self._end()
        failures, began = len(self._saver.failures), self._clock()
        yield
        self._open, self._during = Save(began, self._clock() - began), []
        self._failures, self._wished = failures, False

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which no step is made."""
        yield
        self._since = self._clock()

    def _take(self) -> None:
        """Takes a step into account."""
        now = self._clock()
        (self._during if self._open else self._usual).append(now - self._since)
        self._since = now
        if not self._saver.busy:
            self._end()

    def _end(self) -> None:
        """Takes the save into account that was begun last."""
        if self._open:
            cost = self._open.cost + slowed(self._during, self._usual)
            self._saves.append(Save(self._open.began, cost, len(self._saver.failures) > self._failures))
            self._spent += cost
            self._open = None

    def metrics(self) -> dict[str, float]:
        """Returns, with `auto`, save_seconds and proof_seconds of the last save, and save_share.

        That is the share of the time since this start by which saves have held up the steps.
        """
        seconds, proof = self._saver.seconds, self._saver.proof_seconds
        if seconds is None or proof is None or not self._auto:
            return {}
        share = self._spent / max(self._clock() - self._first, 1e-9)
        return {"save_seconds": seconds, "proof_seconds": proof, "save_share": share}
