"""Standard output and standard error that nobody reads any more stop no run.

In `python -m tim_jax.train … 2>&1 | tee log`, Ctrl-C ends tee as well. What is written after that has no reader, and
must keep neither a checkpoint from being saved nor the process from ending with its own exit code.
"""

import errno
import io
import sys

UNREAD = (errno.EPIPE, errno.EIO)  # the reader of a pipe has ended, the terminal is gone


class _Unread(io.FileIO):
    """A file whose writes are dropped where nobody can read them."""

    def __init__(self, stream: io.TextIOWrapper, forgiven: tuple[int, ...]):
        """stream: Whose file it is, which stays open. forgiven: Numbers of errors; () for all."""
        super().__init__(stream.fileno(), "wb", closefd=False)
        self._stream = stream  # which closes its file when nothing refers to it any more
        self._forgiven = forgiven

    def write(self, data) -> int:
        try:
            return super().write(data)
        except BlockingIOError:
            raise
        except OSError as error:
            if self._forgiven and error.errno not in self._forgiven:
                raise
            return memoryview(data).nbytes


def keep_going() -> None:
    """Makes standard output and standard error so, where they are the process's own; for commands.

    On standard output, which may be a file that is the aim of a command, a full disk is an error all the same.
    """
    for name, forgiven in (("stdout", UNREAD), ("stderr", ())):
        stream = getattr(sys, name)
        if type(stream) is not io.TextIOWrapper or isinstance(_raw(stream), _Unread):
            continue  # a notebook's, a test's, or done
        stream.flush()
        raw = _Unread(stream, forgiven)
        buffer = raw if stream.write_through else io.BufferedWriter(raw)
        changed = io.TextIOWrapper(
            buffer,
            encoding=stream.encoding,
            errors="backslashreplace" if stream.errors == "strict" else stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, changed)


def interrupts_in_one_line() -> None:
    """Makes Ctrl-C end the process, by that signal as ever, with a line in place of a traceback; for commands."""
    before = sys.excepthook

    def hook(kind, error, traceback) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("\nstopped by SIGINT", file=sys.stderr)
        else:
            before(kind, error, traceback)

    if before is sys.__excepthook__:
        sys.excepthook = hook


def _raw(stream: io.TextIOWrapper) -> object:
    return getattr(stream.buffer, "raw", stream.buffer)
