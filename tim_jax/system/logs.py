"""How messages of libraries look on a terminal where a command runs: one line each, beside its progress bar."""

import logging
import sys


class Handler(logging.Handler):
    """Writes messages to standard error as "warning: …", above a progress bar that is shown there."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm  # slow to import, for a command that has nothing to say

        try:
            tqdm.write(f"{record.levelname.lower()}: {self.format(record)}", file=sys.stderr)
        except Exception:  # as all handlers of logging: a message that cannot be written stops no run
            self.handleError(record)


def install() -> None:
    """Gives the messages of all libraries to `Handler`; for commands, since a library leaves this to its user."""
    if not any(isinstance(handler, Handler) for handler in logging.root.handlers):
        logging.root.addHandler(Handler())
