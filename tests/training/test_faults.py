"""Real runs in processes of their own: out of disk, fed with NaN, two in one workdir, damaged, killed."""

import argparse
import hashlib
import json
import os
import pathlib
import resource
import shutil

import numpy as np
import pytest
from etils import epath

from tests.helpers.processes import Run, good
from tests.helpers.processes import ends_its_runs as ends_its_runs
from tests.helpers.processes import one_device as one_device
from tim_jax.bench import faults as bench
from tim_jax.system import lock
from tim_jax.training import checkpoints


@pytest.fixture(scope="module")
def finished(one_device, tmp_path_factory):
    """The workdir of a run of four steps, with checkpoints of the second and of the fourth."""
    run = Run(tmp_path_factory.mktemp("finished"), training__steps=4, checkpoint__every=2)
    assert run.end()[0] == 0 and run.steps_saved() == [2, 4]
    return run.workdir


def test_a_lock_by_signs_of_life_is_taken_over_when_these_end(tmp_path, monkeypatch):
    """In object storage, where files cannot be locked."""
    monkeypatch.setattr(lock, "BEAT", 0.1)
    path = epath.Path(tmp_path) / "lock"
    with lock._alive(path) as refused:
        assert refused is None
        with lock._alive(path) as other:
            assert f"process {os.getpid()} on " in other
    assert not path.exists()
    path.write_text("of a run that was killed")
    with lock._alive(path) as refused:
        assert refused is None and "killed" not in path.read_text()


def no_room():
    """From the first save on no file may grow beyond 80 kB: the kernel refuses to write, as it does on a full disk."""
    save = checkpoints.Saver.save

    def full(*args):
        resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, resource.RLIM_INFINITY))
        save(*args)

    checkpoints.Saver.save = full


def contents(folder):
    files = sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_without_room_for_checkpoints_training_goes_on_and_says_so(finished, tmp_path):
    shutil.copytree(finished.parent, tmp_path, dirs_exist_ok=True)  # with its data, which need more room
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
    before = contents(tmp_path / "run" / "checkpoints")
    run = Run(tmp_path, no_room, training__steps=8, checkpoint__every=2, checkpoint__keep=1)
    code, line = run.end()
    said = run.said()
    assert code == 1 and run.step() == 8
    assert line.startswith("trained to step 8") and "the checkpoint of step 8 could not be written" in line
    assert "warning: the checkpoint of step 6 could not be written" in said
    assert contents(run.workdir / "checkpoints") == before


def spoil():
    """NaN in one row of the batches of steps 4, 6 and from 9 on."""
    from tim_jax.runs import input_pipeline

    class Spoilt(input_pipeline.SourcePipeline):
        def summed_batches(self, start):
            for step, (batch, index, _) in enumerate(super().summed_batches(start), start + 1):
                if step in (4, 6) or step >= 9:
                    batch["x"] = batch["x"].at[3].set(np.nan)
                yield batch, index, None

    input_pipeline.open_pipeline, opened = (
        (lambda run: Spoilt(*opened_fields(opened(run)))),
        input_pipeline.open_pipeline,
    )
    from tim_jax import train

    train.open_pipeline = input_pipeline.open_pipeline


def opened_fields(feed):
    return feed.run, feed.source, feed.plan


@pytest.mark.slow
def test_updates_that_are_not_finite_are_left_out_until_they_are_too_many(tmp_path):
    run = Run(tmp_path, spoil, training__steps=100, checkpoint__every=2, training__max_nonfinite=3)
    code, line = run.end()
    said = run.said()
    assert code == 1 and line.startswith("failed: 3 updates in a row, up to step 11,")
    assert run.steps_saved() == [7, 8], "steps 4 and 6 were saved late, 10 not at all; two stay"
    assert good(run, 8)
    lines = [json.loads(line) for line in (run.workdir / "nonfinite.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 6, 9, 10, 11]
    assert all(len(line["rows"]) == 1 and set(line["rows"][0]) == {"t", "r", "loss", "index"} for line in lines)
    assert f"step 4: loss nan, gradient nan: update left out; examples {lines[0]['rows'][0]['index']} (t " in said
    metrics = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["nonfinite"] for line in metrics[:8]] == [0, 0, 0, 1, 1, 2, 2, 2]


@pytest.mark.slow
def test_an_altered_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(finished, tmp_path):
    shutil.copytree(finished.parent, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "run" / "checkpoints" / "4"
    path = max(folder.rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    run = Run(tmp_path, training__steps=5, checkpoint__every=2)
    code, line = run.end()
    assert code == 0 and run.steps_saved() == [4, 5] and good(run, 4)
    assert f"warning: checkpoint of step 4 not used: {path.relative_to(folder)} is altered" in run.said()
    assert [path.name for path in (run.workdir / "damaged").iterdir()] == ["4"]


@pytest.mark.parametrize(
    "kills", [pytest.param(2, marks=pytest.mark.slow), pytest.param(30, marks=pytest.mark.nightly)]
)
def test_killed_at_random_moments_a_run_ends_bit_equal(kills):
    """The first of every three kills comes while a checkpoint is written, the second while steps are made."""
    (row,) = bench.run(argparse.Namespace(kills=kills, seed=0))
    assert row["kills"] == row["recovered"] == kills and row["bit_equal"] is True
    assert row["during_save"] >= -(-kills // 3) and row["seconds"] > 0
