"""Plugins: Python files of a user's own that add to the tables, such as OBJECTIVES["mine"] = mine.

A configuration names them in `plugin`. Once one has been loaded, its entry reads PATH#sha256=HASH, which a run records;
`recorded_plugins.py` says when that is run again.
"""

import ast
import hashlib
import pathlib
import sys
import types
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import cloudpickle
from ml_collections import ConfigDict

from tim_jax.config import loading, sections, values
from tim_jax.data import SOURCES
from tim_jax.evaluation import FEATURES, METRICS
from tim_jax.networks import NETWORKS
from tim_jax.system import files, paths
from tim_jax.transitions import CONSISTENCIES, COUPLINGS, DISTRIBUTIONS, GRIDS, OBJECTIVES, SAMPLERS, TRANSPORTS
from tim_jax.transitions.operators import OPERATORS
from tim_jax.transitions.perceptual import PERCEPTUAL
from tim_jax.transitions.rewards import REWARDS
from tim_jax.transitions.sampling.diffusion import DIFFUSIONS
from tim_jax.transitions.sampling.exponential import NOISE_SCALES
from tim_jax.transitions.sampling.jumps import STOCHASTIC
from tim_jax.transitions.weights import KERNELS, SCALES

TABLES: dict[str, dict[str, Any]] = {
    "OBJECTIVES": OBJECTIVES, "TRANSPORTS": TRANSPORTS, "CONSISTENCIES": CONSISTENCIES, "COUPLINGS": COUPLINGS,
    "DISTRIBUTIONS": DISTRIBUTIONS, "KERNELS": KERNELS, "SCALES": SCALES, "SAMPLERS": SAMPLERS,
    "STOCHASTIC": STOCHASTIC, "GRIDS": GRIDS, "NOISE_SCALES": NOISE_SCALES, "DIFFUSIONS": DIFFUSIONS,
    "SOURCES": SOURCES, "METRICS": METRICS, "FEATURES": FEATURES, "NETWORKS": NETWORKS, "PERCEPTUAL": PERCEPTUAL,
    "REWARDS": REWARDS, "OPERATORS": OPERATORS,
}  # fmt: skip
MARK = "#sha256="


class Plugin(NamedTuple):
    """A plugin that has been loaded.

    Attributes:
        path: where its file is.
        text: the file.
        added: (table, name) of what it has added.
        keys: the keys of a configuration that come with it.
    """

    path: str
    text: str
    added: frozenset[tuple[str, str]]
    keys: tuple[str, ...]

    @property
    def entry(self) -> str:
        """How a configuration records it."""
        return f"{self.path}{MARK}{digest(self.text)}"


LOADED: dict[str, Plugin] = {}  # by the hash of the file
OWN_KEYS = frozenset(values.types())  # of the package itself, before any plugin


def digest(text: str) -> str:
    """Returns the SHA-256 of a file's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def load(entries: Sequence[str]) -> tuple[str, ...]:
    """Runs plugins that have not been run yet, and returns their entries with the hash.

    Args:
        entries: paths, or PATH#sha256=HASH, of which the file must still be that one.

    Raises:
        ValueError: one line that names the file and, where there is one, the line in it.
    """
    wanted: dict[str, str] = {}
    for entry in entries:
        path, _, known = entry.partition(MARK)
        if known not in LOADED:
            path, text = _read(path)
            if known and digest(text) != known:
                raise ValueError(f"plugin is {path!r}; it must be the file that it was, and it has changed")
            known = digest(text)
            if known not in LOADED:
                LOADED[known] = _run(path, text, wanted)
        wanted[known] = LOADED[known].entry
    names = [pathlib.PurePath(LOADED[known].path).name for known in wanted]
    if len(set(names)) < len(names):
        raise ValueError(f"plugin is {tuple(entries)}; it must name files of different names")
    return tuple(wanted.values())


def load_given(overrides: dict[str, str]) -> tuple[str, ...]:
    """Takes "plugin" out of overrides and loads what it names: first, since what a run has recorded may need it."""
    return load(values.read("plugin", overrides.pop("plugin", "")))


def base_config(entries: Sequence[str] = ()) -> ConfigDict:
    """The configuration of configs/base.py, which holds every key, with the keys of these plugins."""
    config: ConfigDict = loading.load("base").get_config()
    config.plugin = tuple(entries)
    return with_keys(config)


def with_keys(config: ConfigDict) -> ConfigDict:
    """The configuration with its plugins loaded and the keys that come with them, which are None where not given."""
    if not config.get("plugin"):
        return config
    config.plugin = load(config.plugin)
    for entry in config.plugin:
        for key in LOADED[entry.partition(MARK)[2]].keys:
            *names, last = key.split(".")
            section = config
            for name in names:
                if name not in section:
                    section[name] = ConfigDict()
                section = section[name]
            if last not in section:
                section[last] = None
    return config


def _read(name: str) -> tuple[str, str]:
    """(absolute path, text) of a file."""
    path = files.absolute(paths.given(name, "plugin"))
    try:
        return str(path), path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise ValueError(f"plugin is {name!r}; it must be a Python file ({reason})") from None


def _run(path: str, text: str, together: Iterable[str]) -> Plugin:
    """Runs a file. What is wrong with it leaves the tables as they were.

    Args:
        path: of the file.
        text: of the file.
        together: the hashes of the plugins that it must get on with; it takes the place of others of its names.
    """
    before, loaded = {table: dict(entries) for table, entries in TABLES.items()}, dict(LOADED)
    module = types.ModuleType(f"tim_jax_plugin_{pathlib.PurePath(path).stem}_{digest(text)[:8]}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # where dataclasses look for their types
    try:
        exec(compile(text, path, "exec"), module.__dict__)
        added = _added(before, text, together)
        _renew()
        plugin = Plugin(path, text, added, _keys_of(added))
    except Exception as error:  # of a file that a user wrote
        for table, entries in before.items():
            TABLES[table].clear()
            TABLES[table].update(entries)
        LOADED.clear()
        LOADED.update(loaded)
        del sys.modules[module.__name__]
        _renew()
        said = str(error) if isinstance(error, Refused) else loading.said(error, pathlib.Path(path))
        raise ValueError(f"plugin is {path!r}: {said}") from error
    cloudpickle.register_pickle_by_value(module)  # for processes that read examples, which cannot import it
    return plugin


class Refused(ValueError):
    """What a plugin may not do."""


def _added(before: dict[str, dict[str, Any]], text: str, together: Iterable[str]) -> frozenset[tuple[str, str]]:
    """(table, name) of all entries that are new. Raises Refused for a name that another owner has."""
    added = set()
    for table, entries in TABLES.items():
        for name, old in before[table].items():
            if name not in entries:
                raise Refused(f"{_line(text, name)}{table} has lost {name!r}; it must keep it")
            if entries[name] is not old:
                owner = next((sha for sha, plugin in LOADED.items() if (table, name) in plugin.added), None)
                if owner is None or owner in together:
                    raise Refused(f"{_line(text, name)}{table} has {name!r} already; give it another name")
                added.add((table, name))
        added |= {(table, name) for name in entries.keys() - before[table].keys()}
    for sha, plugin in list(LOADED.items()):
        if plugin.added & added:  # an earlier version, or that of another run
            for table, name in plugin.added - added:
                TABLES[table].pop(name, None)
            del LOADED[sha]
    return frozenset(added)


def _line(text: str, name: str) -> str:
    """The line of a file that first says a name, as errors begin with it."""
    lines = [node.lineno for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant) and node.value == name]
    return f"line {min(lines)}: " if lines else ""


def _renew() -> None:
    """Brings what is derived from the tables up to date with them."""
    sections.SECTIONS["objective"] = sections.objective_section()
    values.types.cache_clear()
    values.placeholders.cache_clear()


def _keys_of(added: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """The keys that come with the objectives among what was added. Raises Refused for a type that no key has."""
    own = tuple(type(OBJECTIVES[name](TRANSPORTS["ot_fm"]())) for table, name in added if table == "OBJECTIVES")
    found = values.types_of("objective", own)
    for key, kind in found.items():
        try:
            values.example(kind)
        except (KeyError, TypeError, IndexError):
            raise Refused(f"{key} has the type {kind}; it must be bool, int, float, str, or a tuple of these") from None
    return tuple(sorted(found.keys() - OWN_KEYS))
