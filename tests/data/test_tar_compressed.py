"""Tar archives that are compressed, under whatever name."""

import io
import tarfile

import pytest

from tim_jax import data


@pytest.mark.parametrize("mode, word", [("gz", "gzip"), ("bz2", "bzip2"), ("xz", "xz")])
@pytest.mark.parametrize("whole", [True, False], ids=["a folder", "a file"])
def test_a_compressed_archive_is_refused_by_what_it_is_and_not_by_its_name(mode, word, whole, tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    path = folder / "train-000.tar"
    with tarfile.open(path, f"w:{mode}") as archive:
        member = tarfile.TarInfo("0.txt")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"words"))
    where = str(folder if whole else path)
    with pytest.raises(
        ValueError, match=rf"^data.path is '{where}'; it must hold tar .*train-000.tar is {word}: unpack"
    ):
        data.open_source("tar", str(tmp_path / "cache"), path=where)
    assert not [found for found in (tmp_path / "cache").glob("tar-*")]
