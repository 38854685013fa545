"""Data that was repaired: what is on the disk now is what is used, whatever was kept of before."""

import json
import os

import numpy as np
import pytest
import safetensors.numpy

from tests.helpers.sources import IMAGES, LATENTS, MADE, encoded
from tim_jax import data
from tim_jax.data import stamps
from tim_jax.data.bad_records import TooManyBadRecords, check_share
from tim_jax.data.sizes import read_sizes
from tim_jax.data.sources.base import digest

SMALL = encoded(IMAGES[0][:4, :4])


def opened(name, tmp_path, where):
    source = data.open_source(name, str(tmp_path / "cache"), **where)
    return source, read_sizes(source, tmp_path / "cache")


def rewritten(path, content):
    """Overwrites a file in its place, which changes no folder."""
    before = os.stat(path.parent).st_mtime_ns
    path.write_bytes(content)
    assert os.stat(path.parent).st_mtime_ns == before


def true_sizes(source):
    """Sizes by decoding every image, 0 where that fails."""
    found = []
    for i in range(len(source)):
        try:
            found.append(source[i]["image"].shape[:2])
        except data.BadRecord:
            found.append((0, 0))
    return np.array(found)


def check(source, sizes):
    np.testing.assert_array_equal(np.stack([sizes.height, sizes.width], 1), true_sizes(source))
    assert sum(sizes.bad.values()) == (true_sizes(source)[:, 0] == 0).sum()
    if sizes.bad:
        listed = [json.loads(line) for line in open(sizes.listed)]
        assert [row["identity"] for row in listed] == [source.identity(row["row"]) for row in listed]


@pytest.fixture(params=["all are looked at", "few are looked at"])
def looked_at(request, monkeypatch):
    """With few, only the second way is left: what could not be used is looked at again."""
    if request.param == "few are looked at":
        monkeypatch.setattr(stamps, "MOST", 2)
    return request.param


@pytest.mark.parametrize("name", ["folder", "manifest"])
def test_an_image_that_was_bad_and_is_overwritten_is_used(name, tmp_path, looked_at):
    where = MADE[name](tmp_path)
    path = sorted(tmp_path.rglob("*4.png"))[0]  # the manifest states no size of it
    whole = path.read_bytes()
    rewritten(path, b"")
    source, sizes = opened(name, tmp_path, where)
    assert sizes.bad == {"empty": 1} and len(source) == 12
    plan = data.make_plan(source, sizes, BUCKETS, tmp_path / "cache")
    rewritten(path, whole)
    source, sizes = opened(name, tmp_path, where)
    assert not sizes.bad and plan.images() == 11
    check(source, sizes)
    assert data.make_plan(source, sizes, BUCKETS, tmp_path / "cache").images() == 12


BUCKETS = data.Bucketing(table=((8, 8),), batch_size=1, fitting=data.Fitting(max_cropped=0.9))


def test_an_image_that_a_manifest_names_and_that_comes_later_is_used(tmp_path, looked_at):
    where = MADE["manifest"](tmp_path)
    paths = [tmp_path / "sub" / f"{i}.png" for i in (2, 4, 6)]
    kept = [path.read_bytes() for path in paths]
    [path.unlink() for path in paths]
    source, sizes = opened("manifest", tmp_path, where)
    assert sizes.bad == {"missing": 3}
    for path, content in zip(paths[:2], kept, strict=False):
        path.write_bytes(content)
    source, sizes = opened("manifest", tmp_path, where)
    check(source, sizes)
    assert sizes.bad == {"missing": 1}


@pytest.mark.parametrize("name", ["folder", "manifest", "latents"])
def test_images_made_anew_at_another_size_are_measured_anew(name, tmp_path):
    where = MADE[name](tmp_path)
    source, sizes = opened(name, tmp_path, where)
    check(source, sizes)
    before = source.fingerprint()
    for path in tmp_path.rglob("*.png"):
        rewritten(path, SMALL)
    for path in tmp_path.rglob("*.safetensors"):
        arrays = {"latent": LATENTS[0][..., :4, :4].copy(), "label": np.array([0])}
        rewritten(path, safetensors.numpy.save(arrays))
    source, sizes = opened(name, tmp_path, where)
    assert source.fingerprint() != before
    measured = np.stack([sizes.height, sizes.width], 1)
    if name == "manifest":  # every second line states a size, which holds until the image is read
        measured = measured[::2]
    assert (measured == 4).all()


def test_an_image_that_is_still_bad_stays_listed(tmp_path):
    where = MADE["folder"](tmp_path)
    path = sorted(tmp_path.rglob("*.png"))[3]
    rewritten(path, b"")
    source, sizes = opened("folder", tmp_path, where)
    written = os.stat(sizes.listed).st_ino
    source, again = opened("folder", tmp_path, where)
    assert again.bad == sizes.bad and os.stat(again.listed).st_ino == written
    check(source, again)


def test_of_many_images_so_many_are_looked_at_and_they_lie_evenly():
    found = stamps.spread(1_000_000, stamps.MOST)
    assert len(found) == stamps.MOST and (found[0], found[-1]) == (0, 999_999)
    assert np.ptp(np.diff(found)) <= 1 and stamps.spread(5, stamps.MOST) == [0, 1, 2, 3, 4]


def test_version_0_1_told_the_same_data_by_its_former_fingerprint(tmp_path):
    """As that version computed them: of the class folders, or of the manifest, alone."""
    for name in ("folder", "latents", "manifest"):
        root = tmp_path / name
        root.mkdir()
        where = MADE[name](root)
        source, _ = opened(name, root, where)
        if name == "manifest":
            about = os.stat(root / "rows.jsonl")
            state = digest(about.st_size, about.st_mtime_ns)
            expected = digest("manifest", str(root / "rows.jsonl"), state, 12, 3)
        else:
            folders = sorted(os.scandir(where["path"]), key=lambda folder: folder.name)
            state = [(folder.name, folder.stat().st_size, folder.stat().st_mtime_ns) for folder in folders]
            expected = digest(name, where["path"], digest(state), 12, where.get("channels", 3))
        assert source.former_fingerprint() == expected != source.fingerprint()


def test_what_to_delete_is_said_where_images_are_not_of_their_size():
    with pytest.raises(TooManyBadRecords, match="delete sizes-. below loader.directory"):
        check_share({"size": 5}, 10, 0.01, "there")
    with pytest.raises(TooManyBadRecords) as error:
        check_share({"empty": 5}, 10, 0.01, "there")
    assert "sizes-" not in str(error.value)
