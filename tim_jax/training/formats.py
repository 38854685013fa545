"""The format of checkpoints, and the one place that knows what older formats called the parts of a state.

Format 1 called the network that trains "student"; since format 2 it is "online". A state whose objective remembers
nothing is stored without a memory, as all were before there was one.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tim_jax.training.state import TrainState

FORMAT = 2  # A change to names or structure that older checkpoints do not share adds one, and a line to RENAMED.
RENAMED: Mapping[int, Mapping[str, str]] = {1: {"online": "student"}}  # format -> {name today: name then}


class UnknownFormat(ValueError):
    """A checkpoint was written by a later version than this one."""


def of_record(record: Mapping[str, Any], where: object) -> int:
    """Returns the format that the record of a checkpoint names; a record without one is of today's.

    Args:
        record: What the checkpoint says of the run that made it.
        where: Names the checkpoint in the error.

    Raises:
        UnknownFormat: For a format that is newer than `FORMAT`, or none at all.
    """
    found = record.get("format", FORMAT)
    if type(found) is not int or not 1 <= found <= FORMAT:
        raise UnknownFormat(f"{where} is a checkpoint of format {found!r}; this version reads formats up to {FORMAT}")
    return found


def stored(state: Any) -> Any:
    """Returns what a checkpoint holds of a state, arrays or their shapes; other trees are as they are."""
    if not isinstance(state, TrainState) or state.memory:
        return state
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state) if field.name != "memory"}


def name_then(name: str, format: int) -> str:
    """Returns what a checkpoint of that format calls the part `name` of the parameters."""
    return RENAMED.get(format, {}).get(name, name)


def state_then(state: TrainState, format: int) -> TrainState:
    """Returns a state with its parts named as in checkpoints of that format.

    EMAs have names of the user's own choice, which no format changes.
    """
    names = RENAMED.get(format, {})
    return _renamed_state(state, names) if names else state


def state_today(state: TrainState, format: int) -> TrainState:
    """Returns a state that was read from a checkpoint of that format with today's names."""
    names = {then: today for today, then in RENAMED.get(format, {}).items()}
    return _renamed_state(state, names) if names else state


def _renamed_state(state: TrainState, names: Mapping[str, str]) -> TrainState:
    return state.replace(params=_renamed(state.params, names), opt_state=_renamed(state.opt_state, names))


def _renamed(tree: Any, names: Mapping[str, str]) -> Any:
    """Returns the tree with the keys of its dictionaries renamed, those of optax's labels among them."""
    if isinstance(tree, dict):
        return {names.get(key, key): _renamed(value, names) for key, value in tree.items()}
    if isinstance(tree, tuple):
        values = (_renamed(value, names) for value in tree)
        return type(tree)(*values) if hasattr(tree, "_fields") else tuple(values)
    return tree
