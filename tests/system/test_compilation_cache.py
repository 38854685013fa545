"""Compiled programs are kept: by default in the user's folder, and a second process compiles nothing anew."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from tests.helpers.configs import TINY_NETWORK, flags
from tests.helpers.devices import for_devices
from tim_jax.system import compilation_cache

# Says what JAX's cache did while a command ran.
COUNTED = """
import collections, sys, jax
events = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event.split("/")[-1]]))
from tim_jax import train
try:
    train.main(sys.argv[1:])
finally:
    print("events:", *(events[name] for name in ("cache_misses", "cache_hits")))
"""
TINY = [
    "--config=digits", *flags(TINY_NETWORK), "--config.data.batch_size=8",
    "--config.training.steps=2", "--config.training.sample_steps=1", "--config.optimizer.warmup_steps=0",
]  # fmt: skip


def train(folder, *options, **environment):
    """(programs kept, programs read, what was said) of a run of its own process whose home is `folder`."""
    given = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    given |= {"HOME": str(folder), "XLA_FLAGS": for_devices(1), "JAX_PLATFORMS": "cpu"}
    given |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    given.pop("XDG_CACHE_HOME", None)
    data = f"--config.loader.directory={folder / 'data'}"
    ran = subprocess.run(
        [sys.executable, "-c", COUNTED, *TINY, data, *options], env=given | environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    kept, read = ran.stdout.rsplit("events:", 1)[1].split()
    return int(kept), int(read), ran.stdout


def programs(folder):
    return {path.name for path in pathlib.Path(folder).rglob("*-cache")}


@pytest.mark.nightly
def test_a_second_process_compiles_nothing_anew(tmp_path):
    kept, read, said = train(tmp_path, f"--workdir={tmp_path / 'first'}")
    folder = tmp_path / ".cache" / "tim_jax" / "xla" / compilation_cache.processor()
    assert f"compiled programs are kept in {folder}\n" in said
    first = programs(folder)
    # What is read here it has kept itself: a program that is asked for twice.
    assert kept == len(first) and any(name.startswith("jit_train_step") for name in first)

    kept, read, _ = train(tmp_path, f"--workdir={tmp_path / 'second'}")
    assert kept == 0 and read >= len(first) and programs(folder) == first

    # One that was cut short, as by a kill, is compiled again.
    (step,) = folder.glob("jit_train_step*-cache")
    step.write_bytes(step.read_bytes()[:1000])
    kept, read_now, _ = train(tmp_path, f"--workdir={tmp_path / 'third'}")
    assert read_now == read - 1
    losses = [(tmp_path / run / "metrics.jsonl").read_text().split('"loss"')[1][:20] for run in ("first", "third")]
    assert losses[0] == losses[1]


@pytest.fixture
def kept_at_once():
    """Every program is kept, however short its compilation; afterwards all is as it was."""
    folder, seconds = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    compilation_cache.change(folder)


def test_where_programs_are_kept_can_be_said(tmp_path, monkeypatch, kept_at_once):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    given, named, processor = str(tmp_path / "given"), tmp_path / "named", compilation_cache.processor()
    found = set()
    for number, (setting, environment, folder) in enumerate(
        [
            ("auto", given, tmp_path / "given"),
            (str(named), given, named / processor),
            ("", given, None),
            ("auto", None, tmp_path / "xdg" / "tim_jax" / "xla" / processor),
        ]
    ):
        compilation_cache.change(environment)  # as JAX does with JAX_COMPILATION_CACHE_DIR
        line = compilation_cache.use(setting)
        assert line == (f"compiled programs are kept in {folder}" if folder else "compiled programs are not kept")
        jax.jit(lambda x: x + number)(1.0).block_until_ready()  # noqa: B023
        before, found = found, {path.parent for path in tmp_path.rglob("*-cache")}
        assert found - before == ({folder} if folder else set())


def test_a_folder_that_cannot_be_made_is_the_users_error_only_if_named(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(compilation_cache, "change", lambda _: pytest.fail("nothing may change"))
    with pytest.raises(ValueError, match=f"^training.compilation_cache is '{file}/in'; it must be a folder"):
        compilation_cache.use(f"{file}/in")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    given = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        assert compilation_cache.use("auto").startswith("compiled programs are not kept: ")
    finally:
        jax.config.update("jax_compilation_cache_dir", given)
