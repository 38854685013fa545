"""What a workdir holds of its run: the configuration that made it, and a line for every start."""

import datetime
import importlib.metadata
import json
import pathlib
import subprocess
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from tim_jax.config import keys
from tim_jax.config.objective import resolved
from tim_jax.config.overrides import override
from tim_jax.system import files
from tim_jax.training.formats import FORMAT

CONFIG, STARTS = "config.json", "starts.jsonl"
PACKAGES = ("tim-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tensorflow-datasets")


def to_json(config: ConfigDict) -> dict:
    """Returns a configuration as JSON holds it, with lists for tuples."""
    return json.loads(config.to_json())


def recorded(workdir: epath.Path) -> dict | None:
    """Returns the configuration that a workdir's run was first started with, or None in a new one.

    It is by today's names, with the values that keys which have come since stand for in it.
    """
    path = workdir / CONFIG
    if not path.exists():
        return None
    return to_json(restored(json.loads(path.read_text())))


def restored(values: dict) -> ConfigDict:
    """Returns the configuration that a workdir or a checkpoint has recorded.

    It is by today's names, with the values that keys which have come since stand for in it.

    Raises:
        ValueError: for an objective or a transport that is no more.
    """
    return resolved(ConfigDict(_with_tuples(keys.completed(values))))


def load(workdir: epath.Path, overrides: dict[str, str] | None = None) -> ConfigDict:
    """Returns a workdir's configuration.

    Args:
        workdir: the folder.
        overrides: {"section.key": text} of keys to change.

    Raises:
        ValueError: one line, if the folder holds no run, or a key that makes a run what it is is overridden.
    """
    values = recorded(workdir)
    if values is None:
        raise ValueError(f"--workdir={workdir}: holds no run; python -m tim_jax.train --workdir={workdir} makes one")
    config = override(ConfigDict(_with_tuples(values)), overrides or {})
    keys.compare_identity(values, config, workdir)
    return config


def record_start(workdir: epath.Path, config: ConfigDict, more: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Writes config.json if it is not there, and adds a line to starts.jsonl; only the first process writes.

    Args:
        workdir: the folder, which is made if it is not there.
        config: of the run.
        more: what checkpoints are to say besides.

    Returns:
        What checkpoints are to say of the run.
    """
    values = to_json(config)
    record = {"format": FORMAT, "config": values, "versions": versions(), "commit": commit(), **more}
    if jax.process_index() > 0:
        return record
    workdir.mkdir(parents=True, exist_ok=True)
    if not (workdir / CONFIG).exists():
        files.replace(workdir / CONFIG, (json.dumps(values, indent=2) + "\n").encode())
    start = {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), **record}
    start["devices"] = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    start["processes"] = jax.process_count()
    files.Log(workdir / STARTS).add(json.dumps(start, ensure_ascii=False))
    return record


def first_start(workdir: epath.Path) -> float:
    """Returns when a workdir's run was first started, in seconds since the epoch."""
    with (workdir / STARTS).open() as file:
        return datetime.datetime.fromisoformat(json.loads(file.readline())["time"]).timestamp()


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


def _with_tuples(values: Any) -> Any:
    """The values of a configuration, whose lists JSON has made of tuples."""
    if isinstance(values, dict):
        return {key: _with_tuples(value) for key, value in values.items()}
    return tuple(map(_with_tuples, values)) if isinstance(values, list) else values
