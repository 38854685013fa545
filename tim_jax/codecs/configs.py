"""Frozen dataclasses made from the config.json that published models come with."""

import dataclasses
import json
import pathlib
import typing
from collections.abc import Collection, Mapping
from typing import Any

# Settings that change nothing that a network computes: the history of the files, training, and generating text.
SILENT = frozenset(
    "architectures attention_dropout attention_probs_dropout_prob bos_token_id cache_implementation "
    "chunk_size_feed_forward drop_path_rate dtype eos_token_id hidden_dropout_prob id2label initializer_range "
    "is_encoder_decoder label2id model_type output_attentions output_hidden_states pad_token_id problem_type "
    "return_dict tie_word_embeddings torch_dtype transformers_version use_cache".split()
)


def read(path: pathlib.Path) -> dict[str, Any]:
    """Reads a config.json as a dict. Raises ValueError, naming the file, if it is missing or no JSON object."""
    try:
        values = json.loads(path.read_text())
    except OSError:
        raise ValueError(f"{path}: is not there; it comes with the weights and says what they are") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must be a JSON object such as a published config.json")
    return values


def make(
    cls: type,
    values: Mapping[str, Any],
    source: str,
    only: Mapping[str, Collection] = {},
    ignored: Collection[str] = (),
) -> Any:
    """Makes a frozen dataclass from a config.json.

    Args:
        cls: the dataclass, whose fields have the names of keys.
        values: the content of the config.json. Lists become tuples.
        source: the file, for messages.
        only: keys, fields or not, that may have certain values alone, or lists whose entries may.
        ignored: keys without effect, besides those in SILENT and those that start with an underscore.

    Returns:
        The instance of `cls`.

    Raises:
        ValueError: with one line for a key that is missing, unknown, of another type or not supported.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    found = {}
    for key, value in values.items():
        entries = value if isinstance(value, list) else [value]
        if key in only and any(entry not in only[key] for entry in entries):
            raise ValueError(f"{source}: {key} is {value!r}; supported is {' or '.join(map(repr, only[key]))} alone")
        if key in fields:
            found[key] = _typed(fields[key].type, value, f"{source}: {key}")
        elif key not in only and key not in ignored and key not in SILENT and not key.startswith("_"):
            raise ValueError(f"{source}: {key} = {value!r} is not known; take it out if it changes no number")
    missing = [
        name for name, field in fields.items() if field.default is dataclasses.MISSING and found.get(name) is None
    ]
    if missing:
        raise ValueError(f"{source}: has no {', '.join(missing)}")
    try:
        return cls(**found)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _typed(kind: Any, value: Any, name: str) -> Any:
    kinds = typing.get_args(kind) or (kind,)
    if float in kinds and type(value) is int:
        value = float(value)
    value = _tuples(value)
    if type(value) not in kinds:
        types = " or ".join("null" if k is type(None) else "a list" if k is tuple else k.__name__ for k in kinds)
        raise ValueError(f"{name} is {value!r}; it must be {types}")
    return value


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
