"""Every source of the table: rows, sizes, identities, fingerprints; paths that climb; shards cut short."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tests.helpers.sources import CAPTIONS, EMBEDDED, IMAGES, LABELS, LATENTS, MADE, ROWS, cut, make_manifest, open_made
from tim_jax import data
from tim_jax.data.bad_records import BadRecord
from tim_jax.data.sizes import read_sizes
from tim_jax.data.sources.manifest import declared_size, inside
from tim_jax.data.sources.photos import PHOTOGRAPHS


@pytest.fixture(scope="module", params=[name for name in data.SOURCES if name not in EMBEDDED])
def made(request, tmp_path_factory):
    """(name, source, a function that opens it again) of made-up data in every layout."""
    root = tmp_path_factory.mktemp(request.param)
    where = MADE[request.param](root)

    def again():
        return data.open_source(request.param, str(root / "cache"), "train", **where)

    return request.param, again(), again


@pytest.fixture(params=list(data.SOURCES))
def any_source(request, embedded, tmp_path):
    """A source for every entry of the table."""
    return open_made(request.param, tmp_path, embedded)


def test_rows_are_what_was_written(made):
    name, source, _ = made
    assert len(source) == ROWS
    for i in range(ROWS):
        row = source[i]
        assert row["index"] == i
        if name == "latents":
            np.testing.assert_array_equal(row["image"], np.moveaxis(LATENTS[i, 0], 0, -1))
            np.testing.assert_array_equal(row["flipped"], np.moveaxis(LATENTS[i, 1], 0, -1))
        else:
            np.testing.assert_array_equal(row["image"], IMAGES[i])
        assert row["label"] == (0 if name == "manifest" else LABELS[i])
        if name in ("manifest", "shards", "parquet"):
            assert row["captions"] == CAPTIONS[i]
        elif name in ("tar", "tfds"):
            assert set(row["captions"]) <= set(CAPTIONS[i])
        else:
            assert "captions" not in row


def test_what_a_source_says_of_its_rows_is_so(any_source):
    source = any_source
    identities = [source.identity(i) for i in range(min(len(source), 50))]
    assert len(set(identities)) == len(identities)
    for i in range(0, len(source), max(1, len(source) // 10)):
        row = source[i]
        height, width, channels = source.image_shape
        assert row["image"].shape == (*source.header(i), channels)
        assert (height, width) in ((None, None), row["image"].shape[:2])
        assert 0 <= row["label"] < max(1, source.num_classes)
        assert ("captions" in row) == source.captions
        assert row["image"].dtype == (np.float32 if "flipped" in row else np.uint8)


def test_sizes_read_once_are_those_of_the_rows(any_source, tmp_path):
    sizes = read_sizes(any_source, tmp_path / "sizes")
    assert len(sizes) == len(any_source) and not sizes.bad
    for i in range(0, len(any_source), max(1, len(any_source) // 10)):
        assert (sizes.height[i], sizes.width[i]) == any_source[i]["image"].shape[:2]


def test_a_source_travels_to_a_worker_without_its_rows(any_source):
    expected = any_source[3]
    packed = pickle.dumps(any_source)
    assert len(packed) < 2000
    np.testing.assert_array_equal(pickle.loads(packed)[3]["image"], expected["image"])


def test_a_source_is_read_by_many_threads_at_once(any_source):
    rows = [i % len(any_source) for i in range(60)]
    with ThreadPoolExecutor(8) as pool:
        for i, row in zip(rows, pool.map(any_source.__getitem__, rows), strict=True):
            assert row["index"] == i
            np.testing.assert_array_equal(row["image"], any_source[i]["image"])


def test_a_source_makes_batches(any_source, tmp_path):
    sizes = read_sizes(any_source, tmp_path / "sizes")
    latents = any_source[0]["image"].dtype != np.uint8
    fitting = data.Fitting(max_cropped=0.9, resize=not latents)
    how = data.Bucketing(area=12 * 12, batch_size=4, max_buckets=3, keep_rare=True, fitting=fitting)
    plan = data.make_plan(any_source, sizes, how, tmp_path)
    assert plan.images() == len(any_source)
    batches = data.global_batches(any_source, plan, 0, augmentation=data.Augmentation(flip=0.5))
    for step in range(4):
        batch = batches[step]
        assert batch["x"].shape[1:3] == tuple(batch["bucket"]) and batch["x"].dtype == np.float32
        assert len(batch["bad"]) == 0
        assert ("caption" in batch) == any_source.captions


def test_opened_again_it_is_the_same(made):
    _, source, again = made
    assert again().fingerprint() == source.fingerprint()


@pytest.mark.parametrize("name", [name for name in MADE if name not in ("tfds", "shards")])
def test_a_changed_source_has_another_fingerprint(name, tmp_path):
    where = MADE[name](tmp_path)
    before = data.open_source(name, str(tmp_path / "cache"), **where).fingerprint()
    if name == "manifest":
        with (tmp_path / "rows.jsonl").open("a") as file:
            file.write("\n" + json.dumps({"image_file": "sub/0.png", "captions": "again"}))
    elif name == "preferences":
        lines = (tmp_path / "pairs.jsonl").read_text().splitlines()
        (tmp_path / "pairs.jsonl").write_text("\n".join(lines[:-1]))
    elif name in ("folder", "latents"):
        path = next((tmp_path / {"folder": "images"}.get(name, name)).glob("*/*.*"))
        path.rename(path.with_name("renamed" + path.suffix))
    else:
        path = sorted(tmp_path.rglob({"tar": "*.tar", "parquet": "*.parquet"}[name]))[0]
        path.write_bytes(path.read_bytes() + b"\0" * 1024)
    assert data.open_source(name, str(tmp_path / "cache"), **where).fingerprint() != before


# What is wrong.


@pytest.mark.parametrize(
    "name, path, message",
    [
        ("folder", "", "data.path is ''; it must name"),
        ("folder", "nowhere", "must be a file or folder that exists"),
        ("folder", ".", "one folder per class"),
        ("latents", ".", "one folder per class"),
        ("manifest", ".", "end in .jsonl"),
        ("tar", ".", "end in .tar"),
        ("parquet", ".", "end in .parquet"),
        ("shards", ".", "about.json|array_record"),
        ("tfds", "no_such_data", "no_such_data.*TensorFlow Datasets"),
    ],
)
def test_a_wrong_path_is_refused_in_one_line(name, path, message, tmp_path):
    where = str(tmp_path / path) if path and name != "tfds" else path
    with pytest.raises(ValueError, match=message) as error:
        data.open_source(name, str(tmp_path / "cache"), path=where)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["../a", "a/../../b", "/etc/passwd", "..", "sub/../../x", "..\\a", "s3://other/a", "/database/a", ""],
)
def test_a_path_that_climbs_out_of_its_root_is_refused(name):
    with pytest.raises(BadRecord, match="outside root"):
        inside("/data", name)


def test_a_relative_name_is_one_from_the_root_whatever_the_root_is_called(tmp_path, monkeypatch):
    """Beside `images/3.png` there is `images/images/3.png`, which is what the manifest in `images` names."""
    (tmp_path / "images" / "images").mkdir(parents=True)
    Image.fromarray(IMAGES[0]).save(tmp_path / "images" / "3.png")
    Image.fromarray(IMAGES[1]).save(tmp_path / "images" / "images" / "3.png")
    (tmp_path / "images" / "rows.jsonl").write_text('{"image_file": "images/3.png", "captions": "a"}')
    monkeypatch.chdir(tmp_path)
    for path in ("images", "./images", str(tmp_path / "images"), "images/rows.jsonl"):
        source = data.open_source("manifest", str(tmp_path / "cache"), path=path)
        np.testing.assert_array_equal(source[0]["image"], IMAGES[1])


def test_absolute_names_inside_the_root_are_read_by_any_of_its_names(tmp_path, monkeypatch):
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "sublink").symlink_to(tmp_path / "real" / "sub")
    Image.fromarray(IMAGES[0]).save(tmp_path / "real" / "sub" / "3.png")
    Image.fromarray(IMAGES[1]).save(tmp_path / "3.png")
    inside_it = [f"{tmp_path}/{name}" for name in ("real/sub/3.png", "link/sub/3.png", "real/sublink/3.png")]
    outside = [f"{tmp_path}/{name}" for name in ("3.png", "real/../3.png", "realistic/3.png")]
    lines = (json.dumps({"image_file": name, "captions": "a"}) for name in (*inside_it, *outside))
    (tmp_path / "real" / "rows.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    for path in ("real", "link", str(tmp_path / "real"), str(tmp_path / "link"), "link/../real"):
        source = data.open_source("manifest", str(tmp_path / "cache"), path=path)
        for i in range(len(inside_it)):
            np.testing.assert_array_equal(source[i]["image"], IMAGES[0], err_msg=path)
        for i in range(len(inside_it), len(source)):
            with pytest.raises(BadRecord, match="outside root"):
                source[i]


@pytest.mark.parametrize("name, kept", [("gs://b/data/a.png", "a.png"), ("a.png", "a.png"), ("gs://b/else/a.png", None),
                                        ("gs://b/data/../a.png", None), ("/data/a.png", None)])  # fmt: skip
def test_names_in_object_storage(name, kept):
    if kept:
        assert inside("gs://b/data", name) == kept
    else:
        with pytest.raises(BadRecord, match="outside root"):
            inside("gs://b/data", name)


@pytest.mark.parametrize("name", ["a.png", "sub/../a.png", "./a.png", "/data/a.png", "..a.png", "sub/..a/b.png"])
def test_a_path_inside_its_root_is_kept(name):
    assert not inside("/data", name).startswith(("/", "../"))


@pytest.mark.parametrize("bucket, size", [("512x768", (512, 768)), ("1.5-512x768", (512, 768)), ([3, 4], (3, 4))])
def test_a_declared_bucket_is_a_size(bucket, size):
    assert declared_size(bucket) == size


@pytest.mark.parametrize("bucket", ["512", "0x5", 7, "axb", "5x99999999999", [1, 2, 3]])
def test_a_wrong_bucket_is_a_bad_record(bucket):
    with pytest.raises(BadRecord, match="metadata"):
        declared_size(bucket)


@pytest.mark.parametrize("name", ["tar", "parquet"])
def test_a_shard_that_is_cut_short_is_listed_and_the_others_are_read(name, tmp_path):
    where = MADE[name](tmp_path)
    last = sorted(tmp_path.rglob({"tar": "*.tar", "parquet": "*.parquet"}[name]))[-1]
    cut(last, 0.5)
    source = data.open_source(name, str(tmp_path / "cache"), **where)
    sizes = read_sizes(source, tmp_path / "sizes")
    assert sizes.bad["shard"] == 1 and 6 <= np.count_nonzero(sizes.height) < ROWS
    listed = [json.loads(line) for line in open(sizes.listed)]
    assert all(row["identity"].startswith(last.name) for row in listed)
    for i in np.flatnonzero(sizes.height):
        np.testing.assert_array_equal(source[int(i)]["image"], IMAGES[i])


def test_a_manifest_with_a_broken_line_keeps_the_others(tmp_path):
    source = data.open_source("manifest", str(tmp_path / "cache"), **make_manifest(tmp_path, '\n{"image_file": "su\n'))
    sizes = read_sizes(source, tmp_path)
    assert (len(source), sizes.bad) == (ROWS + 1, {"metadata": 1})


# The photographs.


def test_photos_are_crops_of_every_class_at_many_aspect_ratios(embedded):
    source = data.open_source("photos", str(embedded), "held_out")
    rows = [source[i] for i in range(len(source))]
    assert np.bincount([row["label"] for row in rows]).tolist() == [40] * 10 and source.num_classes == 10
    ratios = np.array([row["image"].shape[0] / row["image"].shape[1] for row in rows])
    assert ratios.min() < 0.5 and ratios.max() > 2
    assert np.histogram(np.log(ratios), 6, np.log((0.4, 2.5)))[0].min() > 30
    areas = np.array([row["image"].shape[0] * row["image"].shape[1] for row in rows])
    assert areas.min() > 40**2 and areas.max() < 130**2
    things = [thing for _, thing in PHOTOGRAPHS.values()]
    assert all(things[row["label"]] in caption for row in rows for caption in row["captions"])
    assert all(row["image"].std() > 3 for row in rows)
