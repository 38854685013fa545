"""Files of prompts: a line each, JSON of several forms, or a folder with a text file for each."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from tim_jax.system import paths

Record = Mapping[str, Any]  # what a file says of a prompt: "prompt", perhaps "size" and "count", and anything else


def read_prompts(path: str) -> list[tuple[str, Record]]:
    """Reads a file of prompts.

    Args:
        path: a file with a prompt on each line (.txt), with an object that has a "prompt" on each line (.jsonl), or
            with {name: object} or {name: prompt} (.json); or a folder with a .txt file for each prompt.

    Returns:
        (name, record) pairs.

    Raises:
        ValueError: one line, for what cannot be read or holds no prompts, with the number of the prompt that is
            missing or is no text.
    """
    file = paths.given(path, "--prompts")
    kind = "folder" if file.is_dir() else file.suffix.lower()
    if kind not in READERS:
        raise ValueError(
            f"--prompts is {path!r}; it must be a folder of .txt files, or end in .txt, .jsonl or .json (a prompt "
            "itself is given with --prompt)"
        )
    try:
        found = [(name, _record(i, value)) for i, (name, value) in enumerate(READERS[kind](file), 1)]
    except OSError as error:
        raise ValueError(f"--prompts is {path!r}, which cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"--prompts is {path!r}: {error}") from None
    if not found:
        raise ValueError(f"--prompts is {path!r}; it holds no prompts")
    return found


def _record(i: int, value: Any) -> Record:
    record = {"prompt": value} if isinstance(value, str) else value
    if not isinstance(record, dict) or "prompt" not in record:
        raise ValueError(f"prompt {i} is {json.dumps(value)[:60]}; it must be an object with a 'prompt'")
    if not isinstance(record["prompt"], str):
        raise ValueError(f"prompt {i} is {json.dumps(record['prompt'])[:60]}, which is no text")
    return record


def _text(i: int, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"prompt {i} is no text: not UTF-8 at byte {error.start + 1} of {len(data)}") from None


def _lines(file: epath.Path) -> list[bytes]:
    return file.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()


def _json(i: int, data: bytes) -> Any:
    try:
        return json.loads(_text(i, data))
    except json.JSONDecodeError as error:
        raise ValueError(f"prompt {i} is no JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"prompt {i} is no JSON that can be read: it is nested too deeply") from None


def _of_txt(file: epath.Path) -> list[tuple[str, Any]]:
    return [(f"{i - 1:05}", _text(i, line)) for i, line in enumerate(_lines(file), 1)]


def _of_jsonl(file: epath.Path) -> list[tuple[str, Any]]:
    return [(f"{i - 1:05}", _json(i, line)) for i, line in enumerate(_lines(file), 1)]


def _of_json(file: epath.Path) -> list[tuple[str, Any]]:
    try:
        values = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON that can be read ({error})") from None
    if not isinstance(values, dict):
        raise ValueError("must be an object, with a name for each prompt")
    return list(values.items())


def _of_folder(folder: epath.Path) -> list[tuple[str, Any]]:
    texts = sorted(file for file in folder.iterdir() if file.suffix == ".txt" and not file.name.startswith("."))
    return [(file.stem, _text(i, file.read_bytes()).rstrip("\r\n")) for i, file in enumerate(texts, 1)]


READERS: Mapping[str, Callable[[epath.Path], list[tuple[str, Any]]]] = {
    ".txt": _of_txt,
    ".jsonl": _of_jsonl,
    ".json": _of_json,
    "folder": _of_folder,
}
