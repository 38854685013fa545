"""A new folder appears whole, and one command makes it."""

import pytest
from etils import epath

from tim_jax.system import folders


def test_it_appears_at_the_end_and_what_a_kill_left_is_removed(tmp_path):
    folder = epath.Path(tmp_path / "new")
    (tmp_path / ".new.unfinished" / "old").mkdir(parents=True)
    with folders.appearing(folder, "OUT") as new:
        assert not list(new.iterdir()) and not folder.exists()
        (new / "x").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["new"] and (folder / "x").read_text() == "x"


def test_nothing_is_left_where_it_fails(tmp_path):
    with pytest.raises(OSError, match="full"), folders.appearing(epath.Path(tmp_path / "new"), "OUT") as new:
        (new / "x").write_text("x")
        raise OSError("full")
    assert not list(tmp_path.iterdir())


def test_of_two_that_make_it_at_once_one_is_refused(tmp_path):
    """The first is not disturbed, and a third comes too late."""
    folder = epath.Path(tmp_path / "new")
    with folders.appearing(folder, "OUT") as new:
        (new / "x").write_text("of the first")
        with pytest.raises(
            folders.CannotMake, match=r"^OUT is '.*new'; it must be a folder that no other .*process \d+"
        ):
            folders.appearing(folder, "OUT").__enter__()
    assert (folder / "x").read_text() == "of the first"
    with pytest.raises(folders.CannotMake, match=r"^OUT is '.*new'; it must be a new folder, and is there already"):
        folders.appearing(folder, "OUT").__enter__()
    assert (folder / "x").read_text() == "of the first"
