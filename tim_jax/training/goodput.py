"""Goodput: the share of the time since a workdir's first start that went into steps which count.

Steps that are made again after a restart count once, since a checkpoint carries the seconds that led to it.
"""

import contextlib
import time
from collections.abc import Iterator


class Goodput:
    """An account of the time that went into steps which count.

    Attributes:
        first_start: First start of the workdir, in seconds since the epoch.
        productive: Seconds of the steps that led to the present state.
    """

    def __init__(self, first_start: float, productive: float = 0.0):
        self.first_start, self.productive = first_start, productive
        self.begin()

    def begin(self) -> None:
        """Is called when the first step begins."""
        self._since = time.perf_counter()

    def step(self) -> None:
        """Is called when a step is done."""
        now = time.perf_counter()
        self.productive += now - self._since
        self._since = now

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A context whose time, for reading, sampling or saving, is not productive."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    @property
    def share(self) -> float:
        """The share of the time since the first start, in [0, 1]."""
        return min(1.0, self.productive / max(time.time() - self.first_start, 1e-9))
