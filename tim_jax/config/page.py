"""python -m tim_jax.config.page > configs/base.py

Writes the page on which every key is seen with its default and meaning, from the dataclasses of `sections.py`.
"""

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
import typing
from collections.abc import Iterator
from typing import Any

from tim_jax.config.identity import CHANGEABLE, IDENTITY
from tim_jax.config.sections import PLUGIN, SECTIONS, SEED, Key, Section, keys_of

WIDTH = 120
Comments = tuple[tuple[str, ...], str]  # those above a field, and the one beside it


def page() -> str:
    """The text of configs/base.py."""
    lines = ["    config = ConfigDict()", ""]
    lines += _assignment("seed", repr(SEED[0]), (), SEED[1])
    lines += _assignment("plugin", repr(PLUGIN[0]), (), PLUGIN[1]) + [""]
    for name, section in SECTIONS.items():
        lines += [*_comment(section.heading), f"    config.{name} = ConfigDict()", *_keys(name, section), ""]
    body = "\n".join([*lines, "    return config", ""])
    return f"{_head()}\n\n{IMPORTS}\n\n\ndef get_config():\n{body}"


IMPORTS = """from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder"""


def _head() -> str:
    run = [name for name in SECTIONS if name not in IDENTITY] + [
        key for key in CHANGEABLE if not key.startswith(("teacher", "objective"))
    ]
    text = (
        "Identity keys make a run what it is and may not change in a workdir: "
        f"{', '.join(IDENTITY)}. Run keys may: {', '.join(run)}. A teacher may move, but must be "
        "the same checkpoint, as a reward's classifier must be the same, and a plugin the same code."
    )
    first = "Every key of a configuration, with its default and meaning. Other configurations start from here."
    written = "Written by python -m tim_jax.config.page from the dataclasses that the keys are fields of: change those."
    return '"""' + "\n\n".join([first, "\n".join(textwrap.wrap(text, WIDTH)), written]) + '\n"""'


def _keys(path: str, section: Section) -> Iterator[str]:
    known = set()
    for key in keys_of(*section.kinds):
        if key.name not in section.omit:
            known.add(key.name)
            yield from _lines(f"{path}.{key.name}", key, section)
    for name, value in section.defaults.items():
        if name not in known:
            yield f"    config.{path}.{name} = {value!r}"


def _lines(path: str, key: Key, section: Section) -> Iterator[str]:
    comments, value = source(key.kind)[key.name]
    above, beside = comments
    if key.group:
        yield from _comment(*above, beside)
        yield f"    config.{path} = ConfigDict()"
        for inner in keys_of(key.group):
            yield from _lines(f"{path}.{inner.name}", inner, section._replace(defaults={}))
        return
    if key.name in section.defaults:
        value = _text(section.defaults[key.name])
    elif typing.get_origin(key.type) is typing.Union:  # else a configuration file could not set the other type
        value = f"FieldReference({value}, field_type=object)"
    elif section.placeholders:
        value = f"placeholder({key.type.__name__})"
    elif not _literal(value):
        value = _text(key.field.default)
    yield from _assignment(path, value, above, beside)


def _assignment(path: str, value: str, above: tuple[str, ...], beside: str) -> list[str]:
    line = f"    config.{path} = {value}"
    whole = f"{line}  # {beside}" if beside else line
    if len(whole) <= WIDTH:
        return [*_comment(*above), whole]
    return [*_comment(*above, beside), line]


def _comment(*texts: str) -> list[str]:
    return [line for text in texts if text for line in textwrap.wrap(text, WIDTH, **INDENT)]


INDENT: dict[str, Any] = {"initial_indent": "    # ", "subsequent_indent": "    # ", "break_on_hyphens": False}


def _text(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return False
    return True


def source(kind: type) -> dict[str, tuple[Comments, str]]:
    """{field: ((comments above it, comment beside it), its default as it is written)} of a dataclass."""
    text = textwrap.dedent(inspect.getsource(kind))
    comments = {
        token.start[0]: (token.string.lstrip("# "), not token.line[: token.start[1]].strip())
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    }
    found: dict[str, tuple[Comments, str]] = {}
    (node,) = ast.parse(text).body
    assert isinstance(node, ast.ClassDef) and dataclasses.is_dataclass(kind)
    for field in node.body:
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        above: list[str] = []
        line = field.lineno - 1
        while line in comments and comments[line][1]:
            above.insert(0, comments[line][0])
            line -= 1
        beside = comments.get(field.end_lineno or 0, ("", True))[0]
        value = ast.get_source_segment(text, field.value) if field.value else ""
        found[field.target.id] = ((" ".join(above),) if above else (), beside), value or ""
    return found


if __name__ == "__main__":
    print(page(), end="")
