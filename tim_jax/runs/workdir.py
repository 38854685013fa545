"""What a workdir holds of its run: the configuration that made it, and a line for every start."""

import contextlib
import datetime
import importlib.metadata
import json
import pathlib
import subprocess
import time
from collections.abc import Mapping
from shlex import quote
from typing import Any

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from tim_jax.config import identity, plugins, recorded_plugins
from tim_jax.config.objective import resolved
from tim_jax.config.overrides import override
from tim_jax.config.run import Run
from tim_jax.data.class_folders import is_junk
from tim_jax.system import files, jsonl, paths
from tim_jax.system.user_errors import few, one_line
from tim_jax.training import formats

CONFIG, STARTS, CLASSES = "config.json", "starts.jsonl", "classes.json"
PLAN = "plan.json"  # of an ablation, in its own folder
WALKED = ("folder", "latents")  # sources that take whatever folder lies below their path for a class
NAMED = 4  # classes that an error names
PACKAGES = ("tim-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tensorflow-datasets")


def to_json(config: ConfigDict) -> dict:
    """Returns a configuration as JSON holds it, with lists for tuples."""
    return json.loads(config.to_json())


def check_place(workdir: epath.Path) -> None:
    """Raises ValueError for a workdir that holds an ablation, or lies among a run's checkpoints, which come and go."""
    whole = files.absolute(workdir)
    for folder in (whole, *whole.parents):
        if folder.name == "checkpoints" and (folder.parent / CONFIG).exists():
            raise ValueError(
                f"--workdir is {str(workdir)!r}; it must not lie among the checkpoints of another run, {folder.parent}"
            )
    if (workdir / PLAN).exists() and not (workdir / CONFIG).exists():
        raise ValueError(f"--workdir is {str(workdir)!r}; it must be a folder of its own, and holds an ablation")


def check_outside_data(folder: epath.Path, flag: str, config: ConfigDict) -> None:
    """Raises ValueError for a new folder within class folders, whose pictures would be taken for examples of a class.

    Args:
        folder: that is to be written to.
        flag: that gave it.
        config: whose `data` names the class folders.
    """
    whole = files.absolute(folder)
    for source, path, *_ in config.data.mixture or ((config.data.source, config.data.path),):
        if source not in WALKED or not path:
            continue
        root = files.absolute(paths.given(path, "data.path"))
        if root not in (whole, *whole.parents) or any(is_junk(part) for part in whole.relative_to(root).parts):
            continue
        raise ValueError(
            f"{flag} is {str(folder)!r}; it must lie outside of data.path, {path!r}, where its pictures would be "
            "examples themselves"
        )


def recorded(workdir: epath.Path) -> dict | None:
    """Returns the configuration that a workdir's run was first started with, or None in a new one.

    It is by today's names, with the values that keys which have come since stand for in it.
    """
    path = workdir / CONFIG
    if not path.exists():
        return None
    values = jsonl.read_object(path)
    try:
        return to_json(restored(values, workdir))
    except (TypeError, AttributeError, LookupError, RecursionError) as error:
        raise ValueError(f"{path}: it is no configuration, or damaged ({one_line(error)[:200]})") from None


def restored(values: dict, folder: Any = None) -> ConfigDict:
    """Returns the configuration that a workdir or a checkpoint has recorded, with its plugins loaded.

    It is by today's names, with the values that keys which have come since stand for in it.

    Args:
        values: what was recorded.
        folder: the workdir; None for exported weights.

    Raises:
        ValueError: for an objective or a transport that is no more, or a plugin that may not be run.
    """
    values = values | {"plugin": recorded_plugins.require(values.get("plugin", ()), folder)}
    return resolved(ConfigDict(_with_tuples(identity.completed(values))))


def last_start(workdir: epath.Path) -> dict[str, Any] | None:
    """Returns what STARTS says of the last start of a workdir's run, or None where it says nothing."""
    starts = [line for line in jsonl.read(workdir / STARTS) if isinstance(line.get("config"), dict)]
    return starts[-1] if starts else None


def load(workdir: epath.Path, overrides: dict[str, str] | None = None, flag: str = "--workdir") -> ConfigDict:
    """Returns a workdir's configuration.

    Args:
        workdir: the folder.
        overrides: {"section.key": text} of keys to change.
        flag: that gave the folder, for the error.

    Raises:
        ValueError: one line, if the folder holds no run, or a key that makes a run what it is is overridden.
    """
    overrides = dict(overrides or {})
    given = plugins.load_given(overrides)
    values = recorded(workdir)
    if values is None:
        inside = next((path for path in files.absolute(workdir).parents if (path / CONFIG).exists()), None)
        makes = f"tim-jax train --config=NAME {quote(f'--workdir={workdir}')} makes one"
        hint = f"it lies in one, {inside}" if inside else makes
        raise ValueError(f"{flag}={workdir}: holds no run; {hint}")
    return _changed(values, overrides, given, workdir)


def to_go_on(path: str, overrides: dict[str, str]) -> ConfigDict:
    """Returns the configuration that a workdir's run goes on with: that of its last start.

    Args:
        path: the workdir, as it was typed.
        overrides: {"section.key": text} of keys to change.

    Raises:
        ValueError: one line, as `load`.
    """
    folder, overrides = paths.run_folder(path, "--workdir"), dict(overrides)
    given = plugins.load_given(overrides)
    start = last_start(folder)
    if start:
        formats.of_record(start, folder / STARTS)
    values = to_json(restored(start["config"], folder)) if start else recorded(folder)
    if values is None:
        raise ValueError(
            f"--config: missing; it names what to train, as --workdir={path} holds no run that could go on"
        )
    return _changed(values, overrides, given, folder)


def _changed(
    values: dict[str, Any], overrides: dict[str, str], given: tuple[str, ...], workdir: epath.Path
) -> ConfigDict:
    """A recorded configuration with plugins added and keys changed."""
    config = ConfigDict(_with_tuples(values))
    config.plugin = tuple(dict.fromkeys((*config.plugin, *given)))
    config = override(config, overrides)
    identity.compare(values, config, workdir)
    return config


def record_start(
    workdir: epath.Path, config: ConfigDict, more: Mapping[str, Any] = {}, classes: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Writes config.json and classes.json if they are not there, and adds a line to starts.jsonl.

    Only the first process writes.

    Args:
        workdir: the folder, which is made if it is not there.
        config: of the run.
        more: what checkpoints are to say besides.
        classes: names of labels; () where the data does not say.

    Returns:
        What checkpoints are to say of the run.
    """
    values = to_json(config)
    record = {"format": formats.FORMAT, "config": values, "versions": versions(), "commit": commit(), **more}
    if jax.process_index() > 0:
        return record
    workdir.mkdir(parents=True, exist_ok=True)
    if not (workdir / CONFIG).exists():
        files.replace(workdir / CONFIG, (json.dumps(values, indent=2) + "\n").encode())
    recorded_plugins.keep_copies(config.plugin, workdir)
    if classes and not (workdir / CLASSES).exists():
        files.replace(workdir / CLASSES, (json.dumps(classes, indent=1) + "\n").encode())
    start = {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), **record}
    start["devices"] = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    start["processes"] = jax.process_count()
    files.Log(workdir / STARTS).add(json.dumps(start, ensure_ascii=False))
    return record


def class_names(workdir: epath.Path) -> tuple[str, ...]:
    """Returns what the labels of a workdir's run are called; () where its data did not say."""
    path = workdir / CLASSES
    return tuple(jsonl.read_object(path, list)) if path.exists() else ()


def compare_classes(workdir: epath.Path, run: Run, names: tuple[str, ...]) -> None:
    """Checks that labels mean what they meant when a workdir's run was started.

    Args:
        workdir: the folder, which may be new.
        run: that goes on.
        names: of its labels now; () where the data does not say.

    Raises:
        ValueError: one line that names what has changed.
    """
    if not run.inputs.num_classes or not names:
        return
    before = class_names(workdir)
    if not before:
        if (workdir / CONFIG).exists() and any(name != str(label) for label, name in enumerate(names)):
            logging.warning("%s does not say what its labels are called: see that they are as they were", workdir)
        return
    if before == names:
        return
    gone = [name for name in before if name not in names]
    new = [name for name in names if name not in before]
    changes = [f"{_listed(some)} {what}" for some, what in ((new, "new"), (gone, "gone")) if some]
    key = next(key for key in ("mixture", "path", "source") if run.config.data[key])
    raise ValueError(
        f"data.{key} is {run.config.data[key]!r}; it must have the classes that {workdir} was trained with, in their "
        f"order ({CLASSES}): {' and '.join(changes) or 'the order is another'}"
    )


def first_start(workdir: epath.Path) -> float:
    """Returns when a workdir's run was first started, in seconds since the epoch; now, where nothing says it."""
    for line in jsonl.read(workdir / STARTS):
        with contextlib.suppress(KeyError, TypeError, ValueError):
            return datetime.datetime.fromisoformat(line["time"]).timestamp()
    return time.time()


def versions() -> dict[str, str]:
    """Returns the versions of the packages that numbers depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str | None:
    """Returns the commit of the checkout that the code runs from, with a + if it was changed; None outside of one."""
    folder = pathlib.Path(__file__).resolve().parents[1]

    def git(*args: str) -> str | None:
        done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=20)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        head = git("rev-parse", "HEAD")
        return head and head + ("+" if git("status", "--porcelain", "--", str(folder)) else "")
    except (OSError, subprocess.TimeoutExpired):
        return None


def _listed(names: list[str]) -> str:
    return f"{few([repr(name) for name in names], NAMED)} {'is' if len(names) == 1 else 'are'}"


def _with_tuples(values: Any) -> Any:
    """The values of a configuration, whose lists JSON has made of tuples."""
    if isinstance(values, dict):
        return {key: _with_tuples(value) for key, value in values.items()}
    return tuple(map(_with_tuples, values)) if isinstance(values, list) else values
