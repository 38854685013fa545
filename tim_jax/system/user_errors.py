"""How commands answer their users: what is wrong, in one line on standard error, and an exit code."""

import argparse
import contextlib
import difflib
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

from tim_jax.system import accelerators, logs, peers, streams
from tim_jax.system.exit_codes import FAILED, USER_ERROR


@contextlib.contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Within this context errors of these kinds are a user's: they end the process with one line and exit code 2.

    kinds: By default ValueError, and OSError: files and folders that cannot be read or written.
    """
    try:
        yield
    except kinds or (ValueError, OSError) as error:
        if peers.gone(error):  # JAX raises ValueError for it, too
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(USER_ERROR) from None


@contextlib.contextmanager
def failures(*kinds: type[Exception], code: int = FAILED) -> Iterator[None]:
    """Within this context errors of these kinds end the process with one line and this exit code: it cannot go on."""
    try:
        yield
    except kinds as error:
        if peers.gone(error):
            raise
        print(f"failed: {one_line(error)}", file=sys.stderr)
        raise SystemExit(code) from None


def one_line(error: Exception) -> str:
    """Returns what an error says, in one line that any terminal can show."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}"
    return " ".join(text.split()).encode("utf-8", "backslashreplace").decode() or type(error).__name__


def _choices(match: re.Match[str]) -> str:
    return f"{match[1]} is {match[2]}; it must be one of {match[3].replace(chr(39), '')}"  # which Python 3.11 quotes


# What argparse says, and how commands say it.
REWORDED: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"the following arguments are required: (.+)", r"\1: missing"),
    (r"argument ([^:]+): invalid int value: (.+)", r"\1 is \2; it must be a whole number"),
    (r"argument ([^:]+): invalid float value: (.+)", r"\1 is \2; it must be a number"),
    (r"argument ([^:]+): invalid choice: (.+) \(choose from (.+)\)", _choices),
    (r"argument ([^:]+): expected one argument", r"\1: has no value; it must be \1=VALUE"),
    (r"unrecognized arguments: (.+)", r"\1: no such argument"),
)


def few(texts: Sequence[str], most: int) -> str:
    """Returns the first of several texts, at most so many, and how many more there are: "a, b and 7 more"."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The known name that is most like `name`, dashes before them aside, in a list; [] if none is much like it."""
    bare = {one.lstrip("-"): one for one in known}
    return [bare[one] for one in difflib.get_close_matches(name.lstrip("-"), bare, n=1)]


class _Renamed(argparse.Action):
    """Answers the former name of a flag with the one that it has now."""

    def __init__(self, option_strings: Any, dest: str, now: str):
        super().__init__(option_strings, argparse.SUPPRESS, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        self.now = now

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        parser.error(f"{option_string}={values}: is called {self.now} now: {self.now}={values}")


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that answers wrong arguments with one line and exit code 2.

    A flag that is none is named before one that is missing, since most often it was meant to be that. A command that
    parses its line writes on where nobody reads it any more (see `streams`), shows what libraries warn of in one line
    (see `logs`), and keeps the TPU library quiet where there is no TPU.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        for prepare in (streams.keep_going, streams.interrupts_in_one_line, logs.install, accelerators.quiet):
            prepare()
        args, flags = sys.argv[1:] if args is None else args, self.flags()
        for word in itertools.takewhile(lambda word: word != "--", args):
            flag, equals, value = word.partition("=")
            if flag.startswith("--") and not any(known.startswith(flag) for known in flags):
                self.error(f"{word}: no such argument; {self.hint(flag, equals + value)}")
        return super().parse_known_args(args, namespace)

    def add_renamed(self, before: str, now: str) -> None:
        """Adds the former name of a flag, which takes one value and is answered with the name of now."""
        self.add_argument(before, action=_Renamed, now=now)

    def flags(self) -> list[str]:
        """All flags of this parser and of those of its subcommands."""
        own = [flag for action in self._actions for flag in action.option_strings]
        parts = [action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return own + [flag for choices in parts for part in choices.values() for flag in part.flags()]

    def hint(self, flag: str, rest: str) -> str:
        """What may have been meant by a flag that is none and is followed by `rest`."""
        near = nearest(flag, self.flags())
        return f"did you mean {near[0]}{rest}?" if near else f"flags are {', '.join(sorted(set(self.flags())))}"

    def error(self, message: str) -> NoReturn:
        for pattern, form in REWORDED:
            message = re.sub(f"^{pattern}$", form, message, flags=re.DOTALL)
        text = one_line(ValueError(message))
        print(f"error: {text if text.endswith('?') else f'{text}; see --help'}", file=sys.stderr)
        raise SystemExit(USER_ERROR)
