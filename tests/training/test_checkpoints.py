"""Checkpoints: which stay, that none goes before a newer one is complete, and that no altered byte is taken for one."""

import errno
import gc
import os
import pathlib
import resource
import shutil
import subprocess
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from tim_jax.system import holds
from tim_jax.training import checkpoints, checksums, damaged, formats, proof, removal

RECORD = {"config": {"seed": 0}}


def state(step, size=300):
    return {"a": jnp.arange(size, dtype=jnp.float32) + step, "b": jnp.full((3, 4), step)}


def saved(workdir, steps, keep=100, keep_every=0):
    """A closed workdir with checkpoints of these steps."""
    saver = checkpoints.Saver(checkpoints.open_manager(workdir, keep, keep_every=keep_every))
    for step in steps:
        saver.save(step, state(step), RECORD)
    saver.close()
    assert saver.failures == [] and saver.saved == steps[-1]


@pytest.fixture
def workdir(tmp_path):
    return epath.Path(tmp_path)


def found(workdir):
    """What a restart finds: (step, what is wrong with later ones)."""
    manager = checkpoints.open_manager(workdir, 100, read_only=True)
    try:
        return checkpoints.latest_good(manager)
    finally:
        manager.close()


def names(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@pytest.mark.parametrize("keep, keep_every, left", [(2, 0, [6, 7]), (1, 3, [0, 3, 6, 7])])
def test_the_latest_and_every_nth_stay(keep, keep_every, left, workdir):
    saved(workdir, range(8), keep, keep_every)
    assert names(workdir) == left
    assert found(workdir) == (7, {})


def test_a_new_checkpoint_is_complete_before_an_old_one_goes(workdir):
    """Every state of the folder that a reader can see holds at least `keep` complete checkpoints."""
    saved(workdir, [1, 2])
    seen, ended = set(), threading.Event()

    def steps_now():
        return sorted(name for name in os.listdir(workdir / "checkpoints") if name.isdigit())

    def watch():
        while not ended.is_set():
            steps = steps_now()
            complete = [s for s in steps if os.path.exists(workdir / "checkpoints" / s / "state" / "manifest.ocdbt")]
            if steps == steps_now():  # else one of them has gone meanwhile
                seen.add((len(steps), len(complete) >= 2))

    watcher = threading.Thread(target=watch)
    watcher.start()
    saver = checkpoints.Saver(checkpoints.open_manager(workdir, 2))
    for step in range(3, 10):
        saver.save(step, state(step, 100_000), RECORD)
    saver.close()
    ended.set()
    watcher.join()
    assert {enough for _, enough in seen} == {True}
    assert names(workdir) == [8, 9]
    assert {count for count, _ in seen} >= {2, 3}, "the old one is there while the new one is complete"


def test_deletion_waits_for_the_new_one(workdir, monkeypatch):
    """While a new checkpoint cannot be completed, the old ones stay, however long it takes."""
    saved(workdir, [1, 2])
    saver = checkpoints.Saver(checkpoints.open_manager(workdir, 2))
    gate = threading.Event()
    from orbax.checkpoint._src.checkpointers import async_checkpointer

    commit = async_checkpointer._on_commit_callback
    monkeypatch.setattr(async_checkpointer, "_on_commit_callback", lambda *a, **k: (gate.wait(), commit(*a, **k)))
    saver.save(3, state(3), RECORD)
    time.sleep(0.5)
    before = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    gate.set()
    saver.close()
    assert before[:2] == ["1", "2"] and len(before) == 3 and not before[2].isdigit()
    assert names(workdir) == [2, 3]


def test_every_altered_or_cut_file_is_found_named_and_the_one_before_is_used(workdir):
    saved(workdir, [1, 2])
    folder = pathlib.Path(workdir / "checkpoints" / "2")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(files) > 10 and any(path.name == "manifest-0-of-1.sha256" for path in files)
    assert found(workdir) == (2, {})
    rng = np.random.default_rng(0)
    for path in files:
        whole = path.read_bytes()
        damages = {"cut": whole[:-1]} if whole else {"grown": b"x"}
        for position in {0, len(whole) - 1, int(rng.integers(len(whole)))} if whole else ():
            flipped = bytearray(whole)
            flipped[position] ^= 1 << int(rng.integers(8))
            damages[f"byte {position}"] = bytes(flipped)
        for kind, content in damages.items():
            path.write_bytes(content)
            step, wrong = found(workdir)
            assert step == 1, (path, kind)
            assert path.name in wrong[2], (path, kind, wrong)
        path.unlink()
        if path.name != "commit_success.txt":
            step, wrong = found(workdir)
            assert step == 1 and (path.name in wrong[2] or wrong[2] == checkpoints.NO_MANIFEST), path
        path.write_bytes(whole)
    assert found(workdir) == (2, {})


def test_every_byte_counts(tmp_path):
    folder = epath.Path(tmp_path)
    (folder / "part").mkdir()
    (folder / "a").write_bytes(b"some bytes")
    (folder / "part" / "b").write_bytes(b"")
    checksums.write(folder)
    assert checksums.has_manifest(folder) and checksums.damage(folder) is None
    manifest = folder / "manifest-0-of-1.sha256"
    assert subprocess.run(["sha256sum", "--check", "--quiet", manifest.name], cwd=tmp_path).returncode == 0
    for path in (folder / "a", manifest):
        whole = path.read_bytes()
        for position in range(len(whole)):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
            assert path.name in checksums.damage(folder), position
        path.write_bytes(whole)
    assert checksums.damage(folder) is None


def test_processes_share_the_work(tmp_path):
    folder = epath.Path(tmp_path)
    for i in range(7):
        (folder / f"{i}").write_text(f"{i}")
    for process in range(3):
        assert not checksums.has_manifest(folder)
        checksums.write(folder, process, 3)
    assert checksums.has_manifest(folder)
    listed = [len((folder / f"manifest-{p}-of-3.sha256").read_text().splitlines()) - 1 for p in range(3)]
    assert sorted(listed) == [2, 2, 3]
    (folder / "4").write_text("5")
    for count in (1, 2, 4):
        reports = [checksums.damage(folder, process, count) for process in range(count)]
        assert [report for report in reports if report] == ["4 is altered"]


def test_damaged_checkpoints_are_set_aside_and_their_steps_saved_again(workdir, caplog):
    saved(workdir, [1, 2, 3])
    for step in (2, 3):
        shutil.rmtree(workdir / "checkpoints" / str(step) / "state" / "d")
    manager = checkpoints.open_manager(workdir, 100)
    step, wrong = checkpoints.latest_good(manager)
    assert step == 1 and sorted(wrong) == [2, 3]
    damaged.set_aside(manager, wrong)
    said = caplog.text
    assert "step 2" in said and "step 3" in said and "is missing" in said
    saver = checkpoints.Saver(manager)
    saver.save(2, state(2), RECORD)
    saver.close()
    assert found(workdir) == (2, {})
    assert sorted(path.name for path in (workdir / "damaged").iterdir()) == ["2", "3"]


def test_all_damaged_is_said_and_nothing_begins_anew(workdir):
    saved(workdir, [1, 2])
    for step in (1, 2):
        (workdir / "checkpoints" / str(step) / "state" / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(ValueError, match="step 2: state/manifest.ocdbt is altered; step 1: "):
        found(workdir)


def test_a_checkpoint_without_a_manifest_counts_where_no_other_is_good(workdir):
    """A process that is killed between a checkpoint and its manifest leaves it without one."""
    saved(workdir, [1, 2])
    (workdir / "checkpoints" / "2" / "manifest-0-of-1.sha256").unlink()
    assert found(workdir) == (1, {2: checkpoints.NO_MANIFEST})
    (workdir / "checkpoints" / "1" / "manifest-0-of-1.sha256").unlink()
    assert found(workdir) == (2, {})


def test_restored_states_and_records_are_what_was_saved(workdir):
    saved(workdir, [4])
    manager = checkpoints.open_manager(workdir, 2, read_only=True)
    restored = checkpoints.restore(manager, jax.eval_shape(lambda: state(4)))
    jax.tree.map(np.testing.assert_array_equal, restored, state(4))
    assert checkpoints.read_record(manager, 4) == RECORD
    with pytest.raises(ValueError, match="step 5: not in .*which has 4"):
        checkpoints.restore(manager, jax.eval_shape(lambda: state(4)), 5)
    manager.close()


def test_what_cannot_be_written_is_told_at_once_and_leaves_the_older_one(workdir, caplog):
    saved(workdir, [1])
    saver = checkpoints.Saver(checkpoints.open_manager(workdir, 1))
    rng = np.random.default_rng(0)
    large = state(2) | {"large": rng.standard_normal(100_000).astype(np.float32)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        saver.save(2, large, RECORD)
        saver.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(saver.failures) == 1 and "checkpoint of step 2 could not be written" in saver.failures[0]
    assert saver.failures[0] in caplog.text
    assert names(workdir) == [1], "nothing is left of what was begun"
    assert found(workdir) == (1, {})
    saver.save(3, large, RECORD)  # there is room again
    saver.close()
    assert len(saver.failures) == 1 and saver.saved == 3
    assert names(workdir) == [3] and found(workdir) == (3, {})


def test_what_the_threads_of_a_failed_write_make_anew_goes_as_well(workdir):
    begun = checkpoints.open_manager(workdir, 1).directory / "2.orbax-checkpoint-tmp"

    def write():
        for seconds in (0.1, 0.4, 0.4):
            time.sleep(seconds)
            begun.mkdir(exist_ok=True)

    threading.Thread(target=write).start()
    removal.clear(begun.parent, calm=2.0)
    assert not begun.exists()


# Of a user's, beside the checkpoints: copies, notes, names that only resemble those of unfinished ones.
OWN = ("2.keep", "1000.good", "3.orbax-checkpoint-tmp.saved", "x.orbax-checkpoint-tmp", "12.txt", "1.", "4.5", "best")
LEFT = ("7.orbax-checkpoint-tmp", "8.orbax-checkpoint-tmp-1712345678")  # by saves that were killed


@pytest.mark.parametrize("how", ["a failed save", "a start"])
def test_only_what_a_save_has_left_is_removed(how, workdir, monkeypatch):
    saved(workdir, [1])
    for name in OWN + LEFT:
        (workdir / "checkpoints" / name / "state").mkdir(parents=True)
    manager = checkpoints.open_manager(workdir, 1)
    if how == "a failed save":
        for name in LEFT:
            (workdir / "checkpoints" / name).mkdir(exist_ok=True)
        saver = checkpoints.Saver(manager)
        monkeypatch.setattr(checksums, "write", lambda *args: 1 / 0)
        saver.save(2, state(2), RECORD)
        saver.close()
        assert len(saver.failures) == 1
    left = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert left - {"1", "2"} == set(OWN) and "1" in left


def fail_to_read(path, monkeypatch):
    digest = checksums.digest

    def failing(file):
        if pathlib.Path(file) == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return digest(file)

    monkeypatch.setattr(checksums, "digest", failing)


def with_wrong_line(path):
    manifest = next(parent for parent in path.parents if parent.name == "2") / "manifest-0-of-1.sha256"
    lines = manifest.read_text().rpartition("# ")[0] + "no checksum\n"
    manifest.write_text(lines + checksums._last_line(lines))
    return manifest


UNREADABLE = {
    "a failing disk": lambda path, patch: fail_to_read(path, patch),
    "a folder": lambda path, patch: (path.unlink(), path.mkdir()),
    "a dead link": lambda path, patch: (path.unlink(), path.symlink_to("nowhere")),
    "a pipe": lambda path, patch: (path.unlink(), os.mkfifo(path)),
    "a device that never ends": lambda path, patch: (path.unlink(), path.symlink_to("/dev/zero")),
    "a wrong line in the manifest": lambda path, patch: with_wrong_line(path),
}


@pytest.mark.parametrize("manifest", [True, False], ids=["with a manifest", "without"])
@pytest.mark.parametrize("file", ["state/manifest.ocdbt", "state/_METADATA", "record/metadata"])
@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_is_named_and_set_aside(kind, file, manifest, workdir, monkeypatch, caplog):
    if not manifest and kind in ("a failing disk", "a wrong line in the manifest"):
        return
    saved(workdir, [1, 2])
    if not manifest:
        for step in "12":
            (workdir / "checkpoints" / step / "manifest-0-of-1.sha256").unlink()
    UNREADABLE[kind](pathlib.Path(workdir / "checkpoints" / "2" / file), monkeypatch)
    step, wrong = found(workdir)
    name = "manifest-0-of-1.sha256" if "wrong line" in kind else file if manifest else pathlib.Path(file).name
    assert step == 1 and (name in wrong[2] or "its state cannot be restored" in wrong[2])
    monkeypatch.undo()
    manager = checkpoints.open_manager(workdir, 2)
    damaged.set_aside(manager, wrong)
    assert names(workdir) == [1] and (workdir / "damaged" / "2").exists() and wrong[2] in caplog.text


def test_two_damaged_checkpoints_of_one_step_are_both_kept(workdir):
    for _ in range(2):
        saved(workdir, [1])
        damaged.set_aside(checkpoints.open_manager(workdir, 2), {1: "tried"})
    assert sorted(path.name for path in (workdir / "damaged").iterdir()) == ["1", "1-2"]


def test_checksums_alone_make_no_checkpoint_good(workdir):
    """Summed up when it could not be restored any more, as in a folder whose parts were never merged."""
    saved(workdir, [1, 2])
    folder = workdir / "checkpoints" / "2"
    (folder / "state" / "manifest.ocdbt").unlink()
    (folder / "manifest-0-of-1.sha256").unlink()
    checksums.write(folder)
    assert checksums.damage(folder) is None
    step, wrong = found(workdir)
    assert step == 1 and wrong[2].startswith("its state cannot be restored: ")


def test_what_cannot_be_restored_is_not_believed_and_costs_no_older_one(workdir, monkeypatch):
    saved(workdir, [1])
    saver = checkpoints.Saver(checkpoints.open_manager(workdir, 1))
    wait = saver.manager.wait_until_finished

    def losing():
        wait()
        (workdir / "checkpoints" / "2" / "state" / "manifest.ocdbt").unlink(missing_ok=True)

    monkeypatch.setattr(saver.manager, "wait_until_finished", losing)
    saver.save(2, state(2), RECORD)
    saver.wait()
    monkeypatch.undo()
    assert saver.saved is None and "step 2 could not be written: its state cannot be restored" in saver.failures[0]
    assert names(workdir) == [1] and found(workdir) == (1, {}) and (workdir / "damaged" / "2").exists()
    saver.save(2, state(2), RECORD)
    saver.close()
    assert saver.saved == 2 and names(workdir) == [2]


def test_a_checkpoint_with_other_arrays_than_were_saved_is_not_believed(workdir):
    saved(workdir, [1])
    shapes = proof.shapes_of(state(1))
    assert proof.broken(workdir / "checkpoints" / "1", shapes) is None
    assert "other arrays" in proof.broken(workdir / "checkpoints" / "1", shapes[1:])


def test_to_prove_a_checkpoint_leaves_nothing_in_memory(workdir):
    """Seven objects of every array stayed each time, which TensorStore never let go of."""
    saved(workdir, [1])

    def objects():
        gc.collect()
        return len(gc.get_objects())

    counts = []
    for _ in range(5):
        assert proof.broken(workdir / "checkpoints" / "1", proof.shapes_of(state(1))) is None
        counts.append(objects())
    assert counts[-1] - counts[1] < 14, "as many as two arrays had of one call"


def test_what_is_read_is_not_removed(workdir):
    saver = checkpoints.Saver(checkpoints.open_manager(workdir, 1))
    saver.save(1, state(1), RECORD)
    saver.wait()
    hold = holds.Hold(workdir / "checkpoints" / "1")
    saver.save(2, state(2), RECORD)
    saver.wait()
    assert names(workdir) == [1, 2]
    del hold
    saver.save(3, state(3), RECORD)
    saver.close()
    assert names(workdir) == [3]


def test_readers_beside_a_run_that_keeps_one_checkpoint_read_whole_ones(workdir):
    ended, read = threading.Event(), []

    def train():
        saver = checkpoints.Saver(checkpoints.open_manager(workdir, 1))
        for step in range(2, 25):
            saver.save(step, state(step), RECORD)
        saver.close()
        ended.set()

    saved(workdir, [1])
    writer = threading.Thread(target=train)
    writer.start()
    while not ended.is_set():
        with checkpoints.opened(workdir / "checkpoints") as manager:
            step, wrong, hold = checkpoints.hold_good(manager)
            restored = checkpoints.restore(manager, jax.eval_shape(lambda: state(0)), step)
            assert float(restored["b"][0, 0]) == step and hold is not None
            assert set(wrong.values()) <= {checkpoints.NO_MANIFEST}, "it is still being summed up"
        read.append(step)
    writer.join()
    assert len(read) > 3 and read == sorted(read) and names(workdir)[-1] == 24


@pytest.mark.parametrize("later", [formats.FORMAT + 1, 99, 0, -1, "2", 2.0, None, True])
def test_a_format_that_is_not_known_is_read_by_nothing(later, workdir):
    saver = checkpoints.Saver(checkpoints.open_manager(workdir, 1))
    saver.save(1, state(1), RECORD | {"format": later})
    saver.close()
    manager = checkpoints.open_manager(workdir, 1, read_only=True)
    for read in (
        lambda: checkpoints.read_record(manager, 1),
        lambda: checkpoints.restore(manager, jax.eval_shape(lambda: state(1))),
        lambda: checkpoints.read_part(manager, 1, (), {"a": jax.ShapeDtypeStruct((300,), jnp.float32)}),
    ):
        with pytest.raises(formats.UnknownFormat, match=f"format {later!r}; this version reads formats up to"):
            read()
    manager.close()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_not_finite_is_never_saved(bad, workdir, caplog):
    saved(workdir, [1])
    saver = checkpoints.Saver(checkpoints.open_manager(workdir, 1))
    for where in ("a", "c/d"):
        spoilt = state(2) | {"c": {"d": jnp.zeros((4, 5), jnp.bfloat16), "e": jnp.zeros((), jnp.int32)}}
        if where == "a":
            spoilt["a"] = spoilt["a"].at[299].set(bad)
        else:
            spoilt["c"]["d"] = spoilt["c"]["d"].at[0, 0].set(bad)
        saver.save(2, spoilt, RECORD)
        assert f"the checkpoint of step 2 could not be written: {where} is not finite" == saver.failures[-1]
    saver.close()
    assert saver.saved is None and names(workdir) == [1] and saver.failures[-1] in caplog.text
