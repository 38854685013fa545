"""Names of parameters, such as "blocks/mlp/up/kernel", and patterns of them.

A pattern is a name or the beginning of one that ends at a slash, with * for anything: "label_embedder", "*/bias".
"""

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax


def by_name(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree of parameters by name."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def name_of(path: tuple) -> str:
    """Returns the name that belongs to a path of keys."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Returns whether one of the patterns matches the name."""
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}/*") for pattern in patterns)


def select(tree: Any, patterns: Sequence[str]) -> Any:
    """Returns a tree of the same structure: whether one of the patterns matches the parameter's name."""
    return jax.tree_util.tree_map_with_path(lambda path, _: matches(name_of(path), patterns), tree)


def check_patterns(key: str, patterns: Any, known: Iterable[str]) -> None:
    """Checks that each pattern matches a name.

    Args:
        key: Key of the configuration that has the patterns, for errors.
        patterns: Texts.
        known: The names.

    Raises:
        ValueError: For a pattern that matches none; it has the nearest names.
    """
    known = list(known)
    for pattern in patterns:
        if not any(matches(name, (pattern,)) for name in known):
            near = difflib.get_close_matches(pattern, [*known, *_beginnings(known)], n=3, cutoff=0.0)
            raise ValueError(
                f"{key} is {patterns!r}; each of them must name a parameter, and {pattern!r} names none: nearest are "
                f"{', '.join(near)}"
            )


def _beginnings(names: Iterable[str]) -> set[str]:
    parts = (name.split("/") for name in names)
    return {"/".join(part[:depth]) for part in parts for depth in range(1, len(part))}
