"""How commands answer their users: what is wrong, in one line on standard error, and an exit code."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from tim_jax.system import streams
from tim_jax.system.exit_codes import FAILED, USER_ERROR


@contextlib.contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Within this context errors of these kinds are a user's: they end the process with one line and exit code 2.

    kinds: By default ValueError, and OSError: files and folders that cannot be read or written.
    """
    try:
        yield
    except kinds or (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(USER_ERROR) from None


@contextlib.contextmanager
def failures(*kinds: type[Exception]) -> Iterator[None]:
    """Within this context errors of these kinds end the process with one line and exit code 1: it cannot go on."""
    try:
        yield
    except kinds as error:
        print(f"failed: {one_line(error)}", file=sys.stderr)
        raise SystemExit(FAILED) from None


def one_line(error: Exception) -> str:
    """Returns what an error says, in one line that any terminal can show."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}"
    return " ".join(text.split()).encode("utf-8", "backslashreplace").decode() or type(error).__name__


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that answers wrong arguments with one line and exit code 2.

    A command that parses its line writes on where nobody reads it any more; see `streams`.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        streams.keep_going()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        print(f"error: {one_line(ValueError(message))}; see --help", file=sys.stderr)
        raise SystemExit(USER_ERROR)
