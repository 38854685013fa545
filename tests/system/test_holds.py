"""Folders that are held are not removed, by whom and on whatever file system; what is removed is seen by nobody."""

import errno
import fcntl
import os

import pytest

from tim_jax.system import holds


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "read").mkdir()
    (tmp_path / "read" / "file").touch()
    return tmp_path / "read"


def test_a_folder_stays_until_nobody_holds_it(folder):
    leaving = folder.with_name("leaving")
    hold = [holds.Hold(folder), holds.Hold(folder)]
    while hold:
        assert not holds.remove(folder, leaving) and (folder / "file").exists()
        hold.pop()
    assert holds.remove(folder, leaving) and list(folder.parent.iterdir()) == []


def test_what_is_not_there_cannot_be_held(folder):
    for path in (folder.with_name("nothing"), folder / "file"):
        with pytest.raises(FileNotFoundError, match=f"has been removed: '{path}'"):
            holds.Hold(path)


def test_what_is_being_removed_cannot_be_held(folder):
    number = os.open(folder, os.O_RDONLY)
    fcntl.flock(number, fcntl.LOCK_EX)  # as who removes it has it
    with pytest.raises(holds.Gone):
        holds.Hold(folder)
    os.close(number)
    assert holds.Hold(folder) is not None


def test_what_was_removed_between_opening_and_locking_cannot_be_held(folder, monkeypatch):
    opened = os.open

    def slow(path, flags):
        number = opened(path, flags)
        folder.rename(folder.with_name("leaving"))
        return number

    monkeypatch.setattr(holds.os, "open", slow)
    with pytest.raises(holds.Gone):
        holds.Hold(folder)


@pytest.mark.parametrize("without_locks", [True, False])
def test_without_locks_nobody_can_hold_it(folder, without_locks, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(holds.fcntl, "flock", refuse)
    hold = holds.Hold(folder)
    assert holds.remove(folder, folder.with_name("leaving"), without_locks) == without_locks
    assert folder.exists() != without_locks and hold is not None
