"""Every command finds before its work that what it is to write cannot be written: one line, exit code 2."""

import errno
import importlib
import os
import pathlib
import types

import jax
import pytest

from tests.helpers.workdirs import contents, one_device, told
from tim_jax.__main__ import COMMANDS, module_of
from tim_jax.system import paths

ROOT = pathlib.Path(__file__).parents[2]
RUN = ROOT / "notebooks" / "digits"
OF_RUN = [f"--workdir={RUN}", "--out={target}"]
# By command: its arguments, and what names the target.
TARGETS = {
    "train": [(["--config=digits", "--workdir={target}"], "--workdir")],
    "sample": [(OF_RUN, "--out")],
    "evaluate": [(OF_RUN, "--out"), ([f"--workdir={RUN}", "--steps=1", "--export={target}/x.npz"], "--export")],
    "diagnose": [(OF_RUN, "--out")],
    "report": [([f"--workdir={RUN}", "--out={target}/x.html"], "--out")],
    "grid": [([f"--workdir={RUN}"], "--workdir")],
    "inspect": [(["--config=digits", "--out={target}"], "--out")],
    "encode": [(["--config=digits", "--out={target}"], "--out")],
    "pairs": [(OF_RUN, "--out")],
    "classify": [(["--config=digits", "--out={target}/x.safetensors"], "--out")],
    "prefer": [([*OF_RUN, "--reward=brightness"], "--out")],
    "search": [([*OF_RUN, "--reward=brightness"], "--out")],
    "convert": [
        (["export", str(RUN), "{target}/x"], "OUT"),
        (["export", str(RUN), "{target}/x.safetensors"], "OUT"),
        (["import", str(ROOT / "tests/golden/c2i_tiny.safetensors"), "{target}/x", "--config=digits"], "WORKDIR"),
    ],
    "ablate": [(["--config=ablations/weights", "--workdir={target}"], "--workdir")],
    "plan": [(["--config=digits", "--topology=v5e:2x2", "--json={target}/x.json"], "--json")],
    "verify": [(["--checks=machine", "--out={target}/x.json"], "--out")],
    "bench": [(["step", "--json={target}/x.json"], "--json")],
}  # fmt: skip
CASES = [(name, *case) for name, cases in TARGETS.items() for case in cases]


def test_every_command_is_here():
    assert TARGETS.keys() == COMMANDS.keys()


@pytest.mark.parametrize("name, arguments, option", CASES, ids=[f"{name} {option}" for name, _, option in CASES])
def test_a_target_that_cannot_be_written_is_named_before_the_work(
    name, arguments, option, tmp_path, monkeypatch, capsys
):
    def refuse(dir):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(paths, "tempfile", types.SimpleNamespace(TemporaryFile=refuse))
    monkeypatch.chdir(ROOT)
    worked, before = [], (contents(tmp_path), contents(RUN))
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *args, **options: worked.append(args))
    main = importlib.import_module(module_of(name)).main
    with one_device():
        line = told(main, [word.format(target=tmp_path / "new") for word in arguments], capsys)
    assert line.startswith(f"error: {option} is '") and line.endswith("(Read-only file system)")
    assert not worked and (contents(tmp_path), contents(RUN)) == before
