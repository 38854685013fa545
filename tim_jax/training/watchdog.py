"""A step that hangs ends its process, which is better than a pod that waits for ever."""

import collections
import contextlib
import faulthandler
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator

from tim_jax.system.exit_codes import RESTART

FACTOR = 10  # a step hangs when it takes this many times the usual


class Watchdog:
    """A context that dumps all stacks and ends the process with exit code 75 when a step takes far longer than usual.

    Usual is the median of the latest steps. Before the first step it is the minimum, so that a run's first step has
    FACTOR times as long.
    """

    def __init__(self, seconds: float):
        """Prepares a watchdog. seconds: The minimum that counts as far longer; 0 for no watchdog."""
        self.seconds = seconds
        self._steps: collections.deque[float] = collections.deque(maxlen=101)
        self._paused = 0
        self._since = time.monotonic()
        self._waited = 0.0  # counted in ticks: a process that is suspended does not hang
        self._ended = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self.seconds:
            self._since = time.monotonic()
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def step(self) -> None:
        """Is called when a step is done."""
        now = time.monotonic()
        self._steps.append(now - self._since)
        self._since, self._waited = now, 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context, for sampling or waiting for a checkpoint, in which no step is expected to end."""
        self._paused += 1
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began
        self._paused, self._waited = self._paused - 1, 0.0

    @property
    def limit(self) -> float:
        """Seconds after which a step hangs."""
        usual = statistics.median(self._steps.copy()) if self._steps else self.seconds
        return max(self.seconds, FACTOR * usual)

    def _watch(self) -> None:
        tick = min(1.0, self.seconds / 4)
        while not self._ended.wait(tick):
            self._waited = 0.0 if self._paused else self._waited + tick
            if self._waited > self.limit:
                with contextlib.suppress(OSError):  # nobody reads it
                    self._tell()
                os._exit(RESTART)

    def _tell(self) -> None:
        print(file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        print(
            f"stopped: a step has taken {self._waited:.0f} s, more than {self.limit:.0f} s; the stacks of all threads "
            "are above; the same command goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
