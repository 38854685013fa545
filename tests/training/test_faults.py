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
    "made, saved, expected",
    [
        ({}, 7, (0, 0.0)),  # killed before its first step
        ({8: 20.0, 9: 21.0, 10: 22.0}, 10, (0, 0.0)),  # nothing was made since
        ({8: 20.0, 9: 21.0, 10: 22.0}, 9, (1, 1.5)),  # from 21.0, when the state of step 9 was reached, to 22.5
        ({8: 20.0, 9: 21.0, 10: 22.0}, 7, (3, 3.5)),  # no save in this start: step 8 took a second, as the others
        ({8: 20.0}, 7, (1, 2.5)),  # what one step takes is not known
    ],
)
def test_the_work_that_a_kill_loses(made, saved, expected):
    assert bench.lost(made, saved, killed=22.5) == expected


def lines(steps, loss=0.0, **more):
    return {step: {"loss": step + loss, "grad_norm": 1.0, "time": float(step), **more} for step in steps}


def test_a_kill_is_recovered_when_the_next_steps_are_those_of_the_undisturbed_run():
    made = [lines(range(1, 7)), {}, lines(range(5, 9))]
    kills = [bench.Kill(9.0, steps, saved, True, 2.0) for steps, saved in zip(made, (4, 4, 6), strict=True)]
    undisturbed, last = lines(range(1, 11)), lines(range(7, 11))
    assert bench.recovered(kills, last, undisturbed) == 3
    assert bench.recovered(kills, last | lines([9], loss=2.0**-20), undisturbed) == 2, "the last start differs"
    assert bench.recovered(kills, lines(range(8, 11)), undisturbed) == 2, "it has left out a step"
    kills[2] = bench.Kill(9.0, lines(range(5, 9), loss=1.0), 6, True, 2.0)
    assert bench.recovered(kills, last, undisturbed) == 1, "both kills before that start count"

    row = bench.figures(kills)
    assert (row["during_save"], row["during_start"], row["step_ms"], row["save_seconds"]) == (3, 1, 1000.0, 2.0)
    assert row["lost_steps"] == {"median": 2, "worst": 2, "all": [2, 0, 2]}
    assert row["lost_saves"] == {"median": 1.5, "worst": 2.5, "all": [2.5, 0.0, 1.5]}


@pytest.mark.parametrize(
    "kills", [pytest.param(2, marks=pytest.mark.slow), pytest.param(30, marks=pytest.mark.nightly)]
)
def test_killed_at_random_moments_a_run_ends_bit_equal(kills):
    """The first of every three kills comes while a checkpoint is being written, the second after one."""
    (row,) = bench.run(argparse.Namespace(kills=kills, seed=0))
    assert row["kills"] == row["recovered"] == kills and row["bit_equal"] is True
    assert row["during_save"] >= 1 and row["during_start"] < kills and row["seconds"] > 0
    for name in ("lost_steps", "lost_seconds", "lost_saves"):
        assert len(row[name]["all"]) == kills and 0 <= row[name]["median"] <= row[name]["worst"]
    assert row["lost_steps"]["worst"] > 0, "the steps since the last save are lost"
