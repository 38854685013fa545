"""What can be made again stays below its size: what was used longest ago goes, what is in use or not ours stays."""

import os
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
from etils import epath

from tim_jax.data import settings, tables
from tim_jax.evaluation import references
from tim_jax.system import caches, compilation_cache

ROOT = pathlib.Path(__file__).resolve().parents[2]
HOLDER = """
import sys
from etils import epath
from tim_jax.data import tables
table = tables.Table(epath.Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def kib(number):
    return number / 2**20


def used(path, seconds_ago):
    """Says of a file or a folder and all in it that it was used so long ago."""
    at = time.time() - seconds_ago
    for each in (path, *path.rglob("*")):
        os.utime(each, (at, at))


def table(folder, name, seconds_ago):
    """A table of 4 KiB and its description."""
    with tables.writing(epath.Path(folder / name), a=np.float32) as writer:
        writer.append(a=np.arange(1024))
    used(folder / name, seconds_ago)
    return folder / name


def test_what_was_used_longest_ago_goes(tmp_path):
    names = [f"sizes-{i:016x}" for i in range(4)]
    for name, hours in zip(names, (3, 5, 4, 2), strict=True):
        table(tmp_path, name, hours * 3600)
    reference = tmp_path / references.name_of({})
    reference.write_bytes(bytes(4096))
    used(reference, 6 * 3600)
    others = [tmp_path / "digits", tmp_path / "sizes-of-mine"]
    for path in others:
        path.mkdir()
        (path / "data").write_bytes(bytes(10**6))
    left = table(tmp_path, f"tar-{7:016x}.unfinished-0123abcd", 7 * 3600)  # of a process that was killed
    caches.trim(tmp_path, settings.MADE_AGAIN, 0)
    assert left.exists(), "no limit"
    caches.trim(tmp_path, settings.MADE_AGAIN, kib(10))  # two tables and a little
    assert {path.name for path in tmp_path.iterdir()} == {names[0], names[3], "digits", "sizes-of-mine"}
    np.testing.assert_array_equal(tables.Table(epath.Path(tmp_path / names[0]))["a"], np.arange(1024))
    # To open it was to use it, so that it is recent, and stays whatever it takes; the other one is not.
    caches.trim(tmp_path, settings.MADE_AGAIN, kib(1))
    assert {path.name for path in tmp_path.iterdir()} == {names[0], "digits", "sizes-of-mine"}


def test_what_another_process_has_open_stays(tmp_path, monkeypatch):
    folder = table(tmp_path, f"files-{1:016x}-0", 9000)
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        try:
            assert holder.stdout.readline() == "open\n"
            used(folder, 9000)
            caches.trim(tmp_path, settings.MADE_AGAIN, kib(1))
            assert folder.exists()
        finally:
            holder.kill()
    caches.trim(tmp_path, settings.MADE_AGAIN, kib(1))
    assert list(tmp_path.iterdir()) == []


def test_every_table_of_the_data_room_can_be_made_again():
    """Found in the code: all that is named by a digest below `loader.directory`."""
    code = "".join(path.read_text() for path in (ROOT / "tim_jax" / "data").rglob("*.py"))
    names = set(re.findall(r'f"(\w+)-\{(?:digest|state|key)', code))
    assert {"sizes", "tar", "plan", "part", "labels"} <= names
    for name in names:
        assert settings.MADE_AGAIN.fullmatch(f"{name}-{'0' * 16}"), name
    for name in ("digits", "emoji", "emoji.lock", "inception.npz", "sizes", "plan-of-mine", "tar-0"):
        assert not settings.MADE_AGAIN.fullmatch(name)


def test_compiled_programs_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation_cache, "processor", lambda: "here")
    monkeypatch.setattr(compilation_cache, "change", lambda folder: None)
    folder = tmp_path / "here"
    folder.mkdir()
    for i in range(4):
        (folder / f"jit_step-{i}-cache").write_bytes(bytes(4096))
        used(folder / f"jit_step-{i}-cache", (9 - i) * 3600)
    (folder / "mine").write_bytes(bytes(4096))
    compilation_cache.use(str(tmp_path), 8.5 / 2**20)
    assert {path.name for path in folder.iterdir()} == {"jit_step-2-cache", "jit_step-3-cache", "mine"}
