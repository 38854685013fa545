"""Saves in the background: what both tiers of checkpoints have in common."""

import threading
import time
from collections.abc import Callable
from typing import Any


class BackgroundSaver:
    """One save at a time, in a thread of its own.

    Attributes:
        saved: The latest step that has been saved and proven, or None.
        seconds: From the beginning of that save to its end, or None.
        proof_seconds: Those of them in which what had been written was read back and summed up, or None.
        failures: What could not be written, a line each.
    """

    def __init__(self, thread: str):
        """thread: Its name."""
        self.saved: int | None = None
        self.seconds: float | None = None
        self.proof_seconds: float | None = None
        self.failures: list[str] = []
        self._name = thread
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether something is being written, or removed after it."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Waits until that is done."""
        if self._thread is not None:
            self._thread.join()

    def begin(self, work: Callable[..., None], *args: Any) -> None:
        """Does work in the thread, once what was begun before is done."""
        self.wait()
        self._thread = threading.Thread(target=work, args=args, name=self._name)
        self._thread.start()

    def done(self, step: int, began: float, written: float) -> None:
        """Says of a step that it has been saved and proven.

        Args:
            step: Of the state.
            began: When its save began, by time.perf_counter.
            written: When all was written that was then read back.
        """
        now = time.perf_counter()
        self.saved, self.seconds, self.proof_seconds = step, now - began, now - written
