"""Goodput: the share of the time since a workdir's first start that went into steps which count.

Steps that are made again after a restart count once, since a checkpoint carries the seconds that led to it.
"""

import time


class Goodput:
    """first_start: of the workdir, in seconds since the epoch. productive: seconds of the steps before this start."""

    def __init__(self, first_start: float, productive: float = 0.0):
        self.first_start, self.productive = first_start, productive

    def add(self, seconds: float) -> None:
        """Seconds of a step that is done, without what it waited for."""
        self.productive += seconds

    @property
    def share(self) -> float:
        return min(1.0, self.productive / max(time.time() - self.first_start, 1e-9))
