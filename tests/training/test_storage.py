"""Workdirs that are copied, moved, renamed or only read; and what is loaded is never what is written."""

import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from tests.helpers.configs import TINY_NETWORK, flags, tiny_config
from tests.helpers.workdirs import contents, one_device, told
from tim_jax import sample, train
from tim_jax.bench import faults
from tim_jax.config.build import build
from tim_jax.training import checkpoints, warm_start

SMALL = TINY_NETWORK | {
    "checkpoint.every": 1, "data.batch_size": 8, "training.sample_steps": 1, "training.log_every": 1,
    "optimizer.warmup_steps": 0, "optimizer.decay_steps": 4, "optimizer.learning_rate": 0.01,
}  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    """A workdir with checkpoints of steps 1 and 2, of a state of one array."""
    saver = checkpoints.Saver(checkpoints.open_manager(epath.Path(tmp_path / "runs" / "7"), 2))
    for step in (1, 2):
        saver.save(step, {"x": np.full(8, step, np.float32)}, {"config": {}})
    saver.close()
    (tmp_path / "runs" / "7" / "config.json").write_text("{}")
    return tmp_path / "runs" / "7"


def test_what_is_loaded_is_what_was_named(saved):
    """Not a neighbour of it, and not what lies above: a workdir may have a number for a name, as checkpoints have."""
    for named, step in ((saved, 2), (saved / "checkpoints" / "1", 1)):
        found = warm_start.find(str(named), "checkpoint.resume")
        assert (str(found.directory), found.step) == (str(saved / "checkpoints"), step)
    (saved.parent / "8").mkdir()
    (saved / "checkpoints" / "3").mkdir()
    for named in (
        saved.parent, saved.parent.parent, saved.parent / "8", saved / "checkpoints", saved / "checkpoints" / "3",
        saved / "checkpoints" / "1" / "state", saved / "checkpoints" / "9",
    ):  # fmt: skip
        with pytest.raises(
            ValueError, match=r"^checkpoint.resume is '.*'; it must be a (workdir with a|checkpoint that)"
        ):
            warm_start.find(str(named), "checkpoint.resume")


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/2", "checkpoints/mine/run"])
def test_a_workdir_does_not_lie_among_the_checkpoints_of_another_run(place, saved, capsys):
    before = contents(saved)
    said = told(train.main, ["--config=digits", f"--workdir={saved / place}", *flags(SMALL)], capsys)
    assert said.startswith("error: --workdir is ") and f"checkpoints of another run, {saved}" in said
    assert contents(saved) == before


def start(folder, data, steps, **more):
    changes = SMALL | {"training.steps": steps, "loader.directory": data} | more
    with one_device():
        train.main(["--config=digits", f"--workdir={folder}", *flags(changes)])


@pytest.mark.slow
def test_a_workdir_is_copied_moved_renamed_and_read(tmp_path, data_directory):
    """Wherever it lies, a run goes on bit-equal; and what reads it writes nothing in it."""
    first, data = tmp_path / "first", data_directory
    start(first, data, 2)
    before = contents(first)
    with one_device():
        sample.main([f"--workdir={first}", "--steps=1", "--count=1", f"--out={tmp_path / 'out'}"])
    start(tmp_path / "loaded", data, 4, **{"checkpoint.resume": first})
    assert contents(first) == before, "what samples from a run, or goes on from it elsewhere, leaves it as it is"

    shutil.copytree(first, tmp_path / "copied")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(first, tmp_path / "elsewhere" / "moved")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "moved")
    start(tmp_path / "copied", data, 4)
    start(tmp_path / "link", data, 4)
    abstract = build(tiny_config(changes={k: str(v) for k, v in SMALL.items()}), jax.devices()[:1]).trainer.abstract
    whole = faults.state_leaves(tmp_path / "loaded", abstract)
    assert whole[0] == 4 and len(whole[1]) > 20
    for place in ("copied", "elsewhere/moved"):
        assert faults.state_leaves(tmp_path / place, abstract) == whole
        lines = [json.loads(line) for line in (tmp_path / place / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert not first.exists()
