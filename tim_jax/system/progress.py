"""Progress bars; in a log, which is no terminal, a line every so often in place of a bar."""

import contextlib
import sys
import threading
import time
from typing import Any, TextIO

from tqdm import tqdm

SECONDS = 30.0  # from one line of a log to the next


class Bar(tqdm):
    """tqdm's progress bar where there is a terminal or a notebook to draw it, else lines, SECONDS apart.

    Work that takes less than SECONDS has one line in a log, at its end, and none with `leave=False`, or where it has
    taken less than `delay` seconds.
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
        if time.monotonic() - self._shown >= SECONDS and self._said != (self.n, self.postfix):
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
        late = time.time() - self.start_t >= self.delay
        if self.leave and late and self._said != (self.n, self.postfix):
            self._line()
        self.disable = True
        self._decr_instances(self)


class Activity(contextlib.AbstractContextManager):
    """A context for work that cannot be counted while it goes on, such as compiling: what is done, and for how long.

    On a terminal the line is renewed every second; in a log there is one at the start, SECONDS apart, and at the end.
    Work that takes less than `after` seconds is not mentioned. Of `total` pieces of work, `next` says that one is done:
    "compiling the step for 64x64, batch 32 (2 of 3) … 12 s, about 24 s left".
    """

    def __init__(
        self, what: str, total: int = 1, after: float = 1.5, disable: bool = False, file: TextIO | None = None
    ):
        """Args:
        what: What is done first.
        total: Pieces of work.
        after: Seconds before the first line.
        disable: Whether nothing is shown.
        file: Where it is shown; by default standard error.
        """
        self.what, self.total, self._after, self._disable = what, total, after, disable
        self._file = file or sys.stderr
        self._number, self._shown, self._width = 1, False, 0
        self._ended, self._lock = threading.Event(), threading.Lock()

    def __enter__(self) -> "Activity":
        self._began = self._piece_began = time.monotonic()
        if not self._disable:
            threading.Thread(target=self._tick, daemon=True, name="activity").start()
        return self

    def next(self, what: str) -> None:
        """Is called when a piece of work is done and there are others. what: The next one."""
        with self._lock:
            self.what, self._number, self._piece_began = what, self._number + 1, time.monotonic()
            if self._shown:
                self._show()

    def note(self, text: str) -> None:
        """Writes a line that stays, above the one that says what is being done."""
        if self._disable:
            return
        with self._lock:
            self._write(text, last=True)
            self._width = 0

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        with self._lock:
            if self._shown:
                in_all = " in all" if self.total > 1 else ""
                self._write(f"{self._title}: {time.monotonic() - self._began:.1f} s{in_all}", last=True)

    @property
    def _title(self) -> str:
        return self.what + (f" ({self._number} of {self.total})" if self.total > 1 else "")

    @property
    def _renews(self) -> bool:
        """Whether lines replace one another: on a terminal with no bar, which draws itself below whole lines."""
        return self._file.isatty() and not getattr(Bar, "_instances", ())

    def _tick(self) -> None:
        wait = self._after
        while not self._ended.wait(wait):
            with self._lock:
                if not self._ended.is_set():
                    self._show()
                    wait = 1.0 if self._renews else SECONDS

    def _show(self) -> None:
        self._shown = True
        now, done = time.monotonic(), self._number - 1
        left = ""
        if done:
            each = (self._piece_began - self._began) / done
            of_this = each - (now - self._piece_began)  # below 0 where it takes longer than those before
            if (seconds := max(of_this, 0) + each * (self.total - self._number)) or not of_this:
                left = f", about {seconds:.0f} s left"
        self._write(f"{self._title} … {now - self._began:.0f} s{left}")

    def _write(self, text: str, last: bool = False) -> None:
        if self._renews:
            self._file.write(f"\r{text:{self._width}}" + "\n" * last)
            self._width = len(text)
            self._file.flush()
        else:
            Bar.write(text, file=self._file)
