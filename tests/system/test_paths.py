"""Paths as users give them."""

import errno
import fcntl
import os
import pathlib

import pytest
from etils import epath

from tim_jax import train
from tim_jax.system import files, lock, paths


def test_home_is_put_in_place_once_and_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.given("~/run", "--workdir") == epath.Path(tmp_path / "run")
    assert paths.given("~", "--workdir") == epath.Path(tmp_path)
    assert paths.given("runs/~/x", "--workdir") == epath.Path("runs/~/x")
    # A folder that is called so is meant where it is written as a path.
    monkeypatch.chdir(tmp_path)
    assert files.absolute(paths.given("./~/x", "--workdir")) == epath.Path(tmp_path / "~" / "x")


@pytest.mark.parametrize("text", ["~nobody-is-called-so", "~nobody-is-called-so/x"])
def test_a_home_that_is_not_known_is_refused(text):
    with pytest.raises(ValueError, match=r"^--out is '~nobody-is-called-so.*'; it must begin with a home folder"):
        paths.given(text, "--out")


def test_without_a_home_folder(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    with pytest.raises(ValueError, match=r"^loader.directory is '~/.cache/x'; it must begin with a home folder"):
        paths.given("~/.cache/x", "loader.directory")


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "must name"), ("a\nb", "UTF-8"), ("a\0b", "UTF-8"), ("a\udcff", "UTF-8"), ("file:///x", "without 'file:'"),
        ("file:/x", "without 'file:'"), ("http://x/y", "on a disk"), ("gs:/bucket/x", "on a disk"),
        ("hf://x/y", "on a disk"),
    ],
)  # fmt: skip
def test_what_is_no_path_is_refused_in_a_line(text, said):
    with pytest.raises(ValueError, match=r"^--out is ") as error:
        paths.given(text, "--out")
    assert said in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("scheme, package", [("gs", '"tim-jax[gcs]"'), ("s3", "s3fs"), ("az", "adlfs")])
@pytest.mark.parametrize("key", ["--workdir", "--config.start.checkpoint", "--config.training.compilation_cache"])
def test_a_missing_package_for_a_remote_path_ends_a_run_that_is_not_repeated(
    scheme, package, key, monkeypatch, capsys, tmp_path
):
    """Exit code 2, which a JobSet and the other launch scripts take for the end."""

    def missing(protocol):
        raise ImportError(f"Please install what reads {protocol}")

    monkeypatch.setattr(paths.fsspec, "get_filesystem_class", missing)
    folder = [] if key == "--workdir" else [f"--workdir={tmp_path / 'run'}"]
    with pytest.raises(SystemExit) as stop:
        train.main(["--config=digits_tiny", *folder, f"{key}={scheme}://bucket/x"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and not (tmp_path / "run").exists()
    assert error.startswith(f"error: {key.removeprefix('--config.')} is '{scheme}://bucket/x'; it must be a local path")
    assert error.endswith(f"pip install {package}\n")


@pytest.mark.parametrize("text", ["a b", "ä/日本　語/💥", "x:y", "C:", "a=1,b=2", "gs_x/y", "-x", "[x]", "it's"])
def test_what_is_unusual_but_a_path_stays_as_it_is(text):
    assert str(paths.given(text, "--out")) == text


@pytest.mark.parametrize("text", ["[x]", "a/b*", "what?", "a\\b", "x]", "gs://bucket/run[1]"])
def test_folders_of_runs_have_no_characters_of_patterns(text, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "_check_package", lambda *_: None)
    with pytest.raises(ValueError, match=r"^start.checkpoint is .*; it must have none of the characters"):
        paths.run_folder(text, "start.checkpoint")


def test_the_folder_that_a_command_is_started_in_counts_too(tmp_path, monkeypatch):
    (tmp_path / "lr=[1e-4]").mkdir()
    monkeypatch.chdir(tmp_path / "lr=[1e-4]")
    with pytest.raises(ValueError, match=r"^--workdir is 'run' \(it is .*lr=\[1e-4\]/run\); it must have none"):
        paths.run_folder("run", "--workdir")


def test_a_file_is_no_folder_of_a_run(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "none")
    for name in ("file", "file/run", "link"):
        with pytest.raises(ValueError, match=r"^--workdir is .*; it must be a folder, and .* is none"):
            paths.run_folder(str(tmp_path / name), "--workdir")
    assert paths.run_folder(str(tmp_path / "new" / "run"), "--workdir") == epath.Path(tmp_path / "new" / "run")


def test_new_files(tmp_path):
    (tmp_path / "file").touch()
    assert paths.new_file(str(tmp_path / "a" / "b.json"), "--json") == pathlib.Path(tmp_path / "a" / "b.json")
    for name in ("", "file/b.json"):
        with pytest.raises(ValueError, match=r"^--json is .*; it must "):
            paths.new_file(str(tmp_path / name) if name else str(tmp_path), "--json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


# Locks.


@pytest.fixture(params=[errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK], ids=errno.errorcode.get)
def without_locks(request, monkeypatch):
    """A file system whose `flock` fails so."""

    def flock(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(lock, "BEAT", 0.1)


def test_without_locks_a_run_starts_with_a_warning_and_keeps_others_away(without_locks, tmp_path, caplog):
    folder = epath.Path(tmp_path / "run")
    with lock.locked(folder):
        (warning,) = [record.getMessage() for record in caplog.records]
        assert "has no locks" in warning and str(folder) in warning
        with pytest.raises(ValueError, match=r"^--out=.*: another run is at work there \(process \d+ on "):
            with lock.locked(folder, option="--out"):
                pass
    with lock.locked(folder):
        pass


def test_another_error_of_a_lock_is_told(monkeypatch, tmp_path):
    def flock(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ValueError, match=r"^--workdir=.*: it cannot be written to \(Input/output error\)"):
        with lock.locked(epath.Path(tmp_path / "run")):
            pass


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"^--workdir=/proc/run: it cannot be written to \(.+\); give another"):
        with lock.locked(epath.Path("/proc/run")):
            pass
