"""Goodput: for how long a start does what, on record in the workdir while it goes on, so that a kill loses seconds."""

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Iterator

from absl import logging
from etils import epath

from tim_jax.system import files
from tim_jax.training import ledger

SECONDS = 10.0  # from one record to the next on a disk; in object storage it is files.SECONDS


@dataclasses.dataclass
class Activity:
    """What is done for some time. kind: A name in ledger.ACTIVITIES, which may be changed until it ends."""

    kind: str


class Goodput:
    """An account of one start's time, from its beginning on. Every moment belongs to one activity, the innermost.

    Attributes:
        carried: Seconds of the steps that led to the state from which the start went on; None while it is not known.
        done: Whether the run has made its last step.
    """

    def __init__(self) -> None:
        self.carried: float | None = None
        self.done = False
        self._began = time.time()
        self._seconds = dict.fromkeys(ledger.ACTIVITIES, 0.0)
        self._activities = [Activity("start")]
        self._since = time.perf_counter()
        self._lock = threading.Lock()
        self._before: list[dict] = []
        self._first_start: float | None = None

    def go_back(self) -> None:
        """From now on time is recorded as of another start: the run goes on from a checkpoint, in the same process."""
        self._before.append(self.record())
        with self._lock:
            self._seconds = dict.fromkeys(ledger.ACTIVITIES, 0.0)
            self._began, self.carried = time.time(), None

    @contextlib.contextmanager
    def doing(self, kind: str) -> Iterator[Activity]:
        """A context that does something of a kind in ledger.ACTIVITIES."""
        activity = Activity(kind)
        with self._lock:
            self._settle()
            self._activities.append(activity)
        try:
            yield activity
        finally:
            with self._lock:
                self._settle()
                self._activities.pop()

    def _settle(self) -> None:
        now = time.perf_counter()
        self._seconds[self._activities[-1].kind] += now - self._since
        self._since = now

    def record(self) -> dict:
        """Returns what this start records, see `ledger.ledger`."""
        with self._lock:  # of what goes on, the kind may still change
            seconds, kind = dict(self._seconds), self._activities[-1].kind
            seconds[kind] += time.perf_counter() - self._since
        line = {"began": self._began, "seen": time.time(), "seconds": seconds, "done": self.done}
        return line if self.carried is None else line | {"carried": self.carried}

    @property
    def productive(self) -> float:
        """Seconds of the steps that led to the present state."""
        return (self.carried or 0.0) + self.record()["seconds"][ledger.STEPS]

    def seconds(self) -> dict[str, float]:
        """Returns where the time since the workdir's first start went, by the names in ledger.KINDS."""
        return ledger.ledger([*self._before, self.record()], self._first_start)

    @contextlib.contextmanager
    def recorded(self, workdir: epath.Path, first_start: float | None = None) -> Iterator[None]:
        """A context in which a workdir says every few seconds where the time goes; the caller holds its lock.

        What cannot be written, on a full disk for example, is logged once, and the run goes on.

        Args:
            workdir: The run's folder, with the record of its earlier starts.
            first_start: When the run was first started, see `ledger.ledger`.
        """
        self._before, self._first_start = ledger.read(workdir), first_start
        ended, told = threading.Event(), False

        def write() -> None:
            nonlocal told
            text = "".join(json.dumps(line) + "\n" for line in (*self._before, self.record()))
            try:
                files.replace(workdir / ledger.FILE, text.encode())
            except Exception as error:  # object storage has errors of its own kinds
                if not told:
                    logging.warning("where the time goes could not be written: %s; the run goes on", error)
                told = True

        def write_again() -> None:
            while not ended.wait(SECONDS if files.is_local(workdir) else files.SECONDS):
                write()

        write()
        thread = threading.Thread(target=write_again, daemon=True, name="goodput")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            write()
