"""Whether results can be written is found before they are made."""

import contextlib
import os
import pathlib
import resource
import tempfile

import pytest

from tim_jax.system import paths


@contextlib.contextmanager
def as_nobody():
    """Within it the process has no more rights than those that files give to all."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


@pytest.fixture
def folder():
    """A folder that all may enter, in which `closed` cannot be written to, `open` can, and `file` is a file.

    pytest's own folders are closed to others.
    """
    with tempfile.TemporaryDirectory() as made:
        root = pathlib.Path(made)
        root.chmod(0o755)
        for name, mode in (("open", 0o777), ("closed", 0o555)):
            (root / name).mkdir()
            (root / name).chmod(mode)
        (root / "file").write_text("x")
        yield root


@pytest.mark.parametrize("place", ["open", "open/new", "open/new/newer"])
def test_a_place_that_can_be_written_to_stays_as_it_is(place, folder):
    before = contents(folder)
    with as_nobody():
        paths.check_folder(folder / place, "--out")
        paths.check_file(folder / place / "x.json", "--json")
    assert contents(folder) == before


@pytest.mark.parametrize(
    "place, reason",
    [
        ("closed", "Permission denied"),
        ("closed/new", "Permission denied"),
        ("file", "is none"),
        ("file/new", "is none"),
    ],
)
def test_another_is_named(place, reason, folder):
    for check, option, path in (
        (paths.check_folder, "--out", folder / place),
        (paths.check_file, "--json", folder / place / "x.json"),
    ):
        with as_nobody(), pytest.raises(ValueError, match=reason) as error:
            check(path, option)
        assert str(error.value).startswith(f"{option} is '{path}'; it must be a f") and "\n" not in str(error.value)


def test_a_file_may_be_no_folder_and_object_storage_is_not_looked_at(folder):
    with pytest.raises(ValueError, match="must be a file, and is a folder"):
        paths.check_file(folder / "open", "--json")
    paths.check_folder("gs://nowhere/at/all", "--out")
    paths.check_file("gs://nowhere/at/all.json", "--json")
    paths.check_file("x.json", "--json")


def test_a_full_disk_is_found_before_the_work(tmp_path):
    """Files can be made on it, and hold nothing: as the kernel's limit of a file's size refuses it."""
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        with pytest.raises(ValueError) as error:
            paths.check_folder(tmp_path / "new", "--out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
    assert str(error.value).endswith("it must be a folder that can be written to, and is not (File too large)")
    assert not list(tmp_path.iterdir())
    paths.check_folder(tmp_path / "new", "--out")
