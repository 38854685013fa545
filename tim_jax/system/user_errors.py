"""How commands answer their users: what is wrong, in one line on standard error, and an exit code."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import NoReturn

from tim_jax.system.exit_codes import FAILED, USER_ERROR


@contextlib.contextmanager
def user_errors(kind: type[ValueError] = ValueError) -> Iterator[None]:
    """Within this context an error of `kind` is a user's: it ends the process with one line and exit code 2."""
    try:
        yield
    except kind as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(USER_ERROR) from None


@contextlib.contextmanager
def failures(*kinds: type[Exception]) -> Iterator[None]:
    """Within this context errors of these kinds end the process with one line and exit code 1: it cannot go on."""
    try:
        yield
    except kinds as error:
        print(f"failed: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(FAILED) from None


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that answers wrong arguments with one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}; see --help", file=sys.stderr)
        raise SystemExit(USER_ERROR)
