"""What a workdir holds of its run: the configuration that made it, and a line for every start."""

import datetime
import importlib.metadata
import json
import pathlib
import subprocess

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
    """A configuration as JSON holds it (tuples are lists)."""
    return json.loads(config.to_json())


def recorded(workdir: epath.Path) -> dict | None:
    """The configuration that a workdir's run was first started with, or None in a new one.

    Keys that have come since are at their defaults.
    """
    path = workdir / CONFIG
    if not path.exists():
        return None
    return to_json(restored(json.loads(path.read_text())))


def restored(values: dict) -> ConfigDict:
    """The configuration that a workdir or a checkpoint has recorded; keys that have come since are at their defaults.

    Raises ValueError for an objective or a transport that is no more.
    """
    return resolved(ConfigDict(_with_tuples(keys.completed(values))))


def load(workdir: epath.Path, overrides: dict[str, str] | None = None) -> ConfigDict:
    """A workdir's configuration. Raises ValueError if it holds no run or an identity key is overridden."""
    values = recorded(workdir)
    if values is None:
        raise ValueError(f"--workdir={workdir}: holds no run; python -m tim_jax.train --workdir={workdir} makes one")
    config = override(ConfigDict(_with_tuples(values)), overrides or {})
    keys.compare_identity(values, config, workdir)
    return config


def record_start(workdir: epath.Path, config: ConfigDict, more: dict = {}) -> dict:
    """Writes config.json if it is not there, appends to starts.jsonl, returns what checkpoints are to say.

    more: that they are to say besides. Only the first process writes.
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
    """When a workdir's run was first started, in seconds since the epoch."""
    with (workdir / STARTS).open() as file:
        return datetime.datetime.fromisoformat(json.loads(file.readline())["time"]).timestamp()


def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str | None:
    """The commit of the checkout that the code runs from, with a + if it was changed; None outside a checkout."""
    folder = pathlib.Path(__file__).resolve().parents[1]

    def git(*args):
        done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=20)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        head = git("rev-parse", "HEAD")
        return head and head + ("+" if git("status", "--porcelain", "--", str(folder)) else "")
    except (OSError, subprocess.TimeoutExpired):
        return None


def _with_tuples(values: dict) -> dict:
    return {
        key: _with_tuples(value) if isinstance(value, dict) else tuple(value) if isinstance(value, list) else value
        for key, value in values.items()
    }
