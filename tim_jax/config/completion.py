"""Completion in a shell, by argcomplete: commands, flags, names of configurations, keys, and folders.

`eval "$(register-python-argcomplete tim-jax)"` turns it on. The shell then runs `tim-jax` with what has been typed in
its environment, and reads the answer from a file descriptor.
"""

import argparse
import os
from collections.abc import Callable, Iterable
from typing import Any

import argcomplete
from argcomplete.completers import ChoicesCompleter, DirectoriesCompleter, FilesCompleter

from tim_jax.config import keys, loading
from tim_jax.config.command_line import KEY, Parser
from tim_jax.system.user_errors import ArgumentParser

NOTHING = ChoicesCompleter({})
VALUES = {bool: ChoicesCompleter({"True": "", "False": ""}), str: FilesCompleter()}  # of keys, by their type
FOLDERS = ("workdir", "out", "verify")
CONFIGURATIONS = ("config", "teacher")


def answer(names: Iterable[str], parser_of: Callable[[str], ArgumentParser]) -> None:
    """Answers the shell, and ends the process.

    Args:
        names: of the commands.
        parser_of: returns the parser of a command, which takes time; only that of the line's command is made.
    """
    line = os.environ["COMP_LINE"]
    tree = ArgumentParser(prog="tim-jax")
    commands = tree.add_subparsers()
    for name in names:
        commands.add_parser(name)
    typed = line.split()[1:2]
    if typed and typed[0] in commands.choices:
        before, _, last = line.rpartition(" ")
        named = [word.partition("=")[0].removeprefix(KEY) for word in before.split() if word.startswith(KEY)]
        commands.choices[typed[0]] = completed(parser_of(typed[0]), named, last.startswith(KEY))
    argcomplete.autocomplete(tree, always_complete_options="long")


def completed(parser: ArgumentParser, named: Iterable[str], show_keys: bool) -> ArgumentParser:
    """A parser whose arguments say what may follow them.

    Args:
        parser: of a command.
        named: keys that the line names, whatever they are: EMAs have names of their own.
        show_keys: whether keys that the command reads are among the flags that are proposed; known all are in any case.
    """
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in dict.fromkeys(action.choices.values()):  # one may have several names
                completed(sub, named, show_keys)
        elif action.nargs != 0 and not action.choices:
            _complete_with(action, _completer(action))
    if isinstance(parser, Parser):
        known = dict.fromkeys(named, "") | keys.flatten(loading.load("base").get_config())
        for key, value in known.items():
            shown = show_keys and key not in parser.unread
            added = parser.add_argument(f"{KEY}{key}", help=None if shown else argparse.SUPPRESS)
            _complete_with(added, VALUES.get(type(value), NOTHING))
    return parser


def _completer(action: argparse.Action) -> Any:
    if action.dest in CONFIGURATIONS:
        files = FilesCompleter(("py",))
        return lambda prefix, **context: [*loading.names(), *files(prefix, **context)]
    if action.dest in FOLDERS:
        return DirectoriesCompleter()
    return FilesCompleter() if action.type is None else NOTHING


def _complete_with(action: argparse.Action, completer: Any) -> None:
    vars(action)["completer"] = completer  # where argcomplete looks for it
