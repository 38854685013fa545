"""Progress bars; in a log, which is no terminal, a line every so often in place of a bar."""

import sys
import time
from typing import Any

from tqdm import tqdm

SECONDS = 30.0  # from one line of a log to the next


class Bar(tqdm):
    """tqdm's progress bar where there is a terminal or a notebook to draw it, else lines, SECONDS apart.

    Work that takes less than SECONDS has one line in a log, at its end, and none with `leave=False`.
    """

    disable: bool

    def __init__(self, *args: Any, **keywords: Any):
        """The arguments of tqdm."""
        file = keywords.get("file") or sys.stderr
        self.in_log = not (file.isatty() or type(file).__module__.startswith("ipykernel"))
        self._shown = time.monotonic()
        self._said: tuple[float, str] | None = None  # count and figures of the last line
        if self.in_log:
            keywords |= {"ncols": 0, "dynamic_ncols": False, "ascii": True, "miniters": 1, "mininterval": SECONDS}
        super().__init__(*args, **keywords)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draws the bar, or writes a line if it is time for one."""
        if not self.in_log:
            return super().display(msg, pos)
        if time.monotonic() - self._shown >= SECONDS:
            self._line()
        return True

    def show(self, figures: str) -> None:
        """Shows figures beside the bar. In a log, the first ones are a line at once, and later ones wait for theirs."""
        self.set_postfix_str(figures, refresh=not self.in_log)
        if self.in_log and not self.disable and self._said is None:
            self._line()

    def _line(self) -> None:
        self.fp.write(f"{self}\n")
        self.fp.flush()
        self._shown, self._said = time.monotonic(), (self.n, self.postfix)

    def clear(self, nolock: bool = False) -> None:
        """Takes the bar away while something else is written; lines stay."""
        if not self.in_log:
            super().clear(nolock)

    def close(self) -> None:
        """Ends the bar; in a log, with a last line."""
        if not self.in_log or self.disable:
            return super().close()
        if self.leave and self._said != (self.n, self.postfix):
            self._line()
        self.disable = True
        self._decr_instances(self)
