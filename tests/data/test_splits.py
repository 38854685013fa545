"""The parts of a data set: for every source disjoint and together the whole, by its own names or by a share."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from etils import epath
from scipy import stats
from sklearn.datasets import load_digits

from tests.helpers.sources import EMBEDDED, IMAGES, LABELS, MADE, encoded, make_folder, make_manifest, make_shards
from tim_jax import data
from tim_jax.data.settings import Inputs, open_data
from tim_jax.data.sources.base import Location
from tim_jax.data.sources.photos import CROPS, PHOTOGRAPHS
from tim_jax.data.splits import by_split, place

SHARE = 0.4


def contents(source):
    """The digest of each example's pixels or latents, which knows nothing of names or numbers."""
    return [hashlib.sha256(source[i]["image"].tobytes()).hexdigest() for i in range(len(source))]


@pytest.fixture(scope="module", params=data.SOURCES)
def opened(request, embedded, tmp_path_factory):
    """(a function: part, share → source; examples of all parts) for every entry of the table."""
    name = request.param
    if name in EMBEDDED:
        whole = {"digits": len(load_digits().target), "photos": sum(CROPS.values()) * len(PHOTOGRAPHS)} | {
            "emoji": 3722
        }
        whole = whole[name]
        return lambda split, share=0.0: data.open_source(name, str(embedded), split, size=16), whole
    root = tmp_path_factory.mktemp(name)
    where = MADE[name](root)

    def again(split, share=SHARE):
        return data.open_source(name, str(root / "cache"), split, held_out_share=share, **where)

    return again, len(IMAGES)


def test_parts_are_disjoint_and_together_the_whole(opened):
    again, whole = opened
    train, held_out = again("train"), again("held_out")
    assert len(train) and len(held_out) and len(train) + len(held_out) == whole
    if whole > len(IMAGES):  # many digits look alike; their numbers tell them apart (tests/data/test_data.py)
        assert train.fingerprint() != held_out.fingerprint()
        return
    assert not set(contents(train)) & set(contents(held_out))
    assert sorted(contents(train) + contents(held_out)) == sorted(contents(again("train", 0.0)))


def test_a_part_is_like_its_source(opened):
    again, whole = opened
    part, rows = again("held_out"), again("train", 0.0)
    if whole > len(IMAGES):
        return
    by_identity = {rows.identity(i): i for i in range(len(rows))}
    for i in range(len(part)):
        row, expected = part[i], rows[by_identity[part.identity(i)]]
        assert row["index"] == i and row["label"] == expected["label"]
        np.testing.assert_array_equal(row["image"], expected["image"])
        assert part.header(i) == part.headers(0, len(part))[i] == expected["image"].shape[:2]
        assert part.annotations(i) == {name: row[name] for name in ("label", "captions") if name in row}
    np.testing.assert_array_equal(part.labels(np.arange(len(part))), [part[i]["label"] for i in range(len(part))])
    assert part.stable_names(0, len(part)) == [rows.stable_names(by_identity[part.identity(i)], whole)[0]
                                               for i in range(len(part))]  # fmt: skip
    for ability in (
        "num_classes",
        "labels_at_hand",
        "captions",
        "latents",
        "class_names",
        "image_shape",
        "name",
        "left_out",
    ):
        assert getattr(part, ability) == getattr(rows, ability)


@pytest.mark.parametrize("split", ["nonsense", "", "Train", "train[:50%]"])
def test_an_unknown_part_is_refused_with_those_there_are(opened, split):
    again, _ = opened
    with pytest.raises(data.UnknownSplit, match="it must be one of train") as error:
        again(split, 0.0)
    assert "\n" not in str(error.value)


def test_without_a_share_nothing_is_held_out_of_data_that_has_no_parts(opened):
    again, whole = opened
    if whole > len(IMAGES):
        return
    assert len(again("train", 0.0)) == whole
    with pytest.raises(data.UnknownSplit, match="'held_out'; it must be one of train, .*data.held_out_share above 0"):
        again("held_out", 0.0)


def test_fingerprints_tell_part_and_share(opened):
    again, whole = opened
    if whole > len(IMAGES):
        return
    opened = [again("train", 0.0), *(again(split, share) for split in ("train", "held_out") for share in (0.3, SHARE))]
    assert len({source.fingerprint() for source in opened}) == len(opened)
    assert again("held_out").fingerprint() == again("held_out").fingerprint()


def test_a_share_is_refused_where_a_part_is_held_out_already(embedded):
    with pytest.raises(ValueError, match="data.held_out_share is 0.1; it must be 0, as .*train, held_out"):
        data.open_source("digits", str(embedded), held_out_share=0.1)


def test_places_are_uniform():
    """Kolmogorov's test on names as data sets have them, and the hash itself by another way to the same number."""
    places = [place(f"n{i % 1000:08}/{i}") for i in range(20000)]
    assert stats.kstest(places, "uniform").pvalue > 0.01
    assert place("cat/1") == pytest.approx(int(hashlib.sha256(b"cat/1").hexdigest(), 16) / 2**256, abs=1e-15)


def test_what_is_added_moves_nothing(tmp_path):
    where = make_folder(tmp_path)

    def parts():
        sources = (data.open_source("folder", str(tmp_path / "cache"), split, held_out_share=SHARE, **where)
                   for split in ("train", "held_out"))  # fmt: skip
        return [{source.identity(i) for i in range(len(source))} for source in sources]

    before = parts()
    for i in range(40):
        (tmp_path / "images" / f"class {i % 2}" / f"a{i}.png").write_bytes(encoded(IMAGES[0]))
    after = parts()
    assert sum(map(len, after)) == sum(map(len, before)) + 40
    assert all(old <= new for old, new in zip(before, after, strict=True))


def test_latents_and_images_of_the_same_names_are_on_the_same_side(tmp_path):
    images = data.open_source("folder", str(tmp_path / "cache"), "held_out", held_out_share=SHARE,
                              **make_folder(tmp_path))  # fmt: skip
    for path in (tmp_path / "images").glob("*/*.png"):
        path.rename(path.with_suffix(".safetensors"))
    latents = data.open_source("latents", str(tmp_path / "cache"), "held_out", held_out_share=SHARE,
                               path=str(tmp_path / "images"))  # fmt: skip
    names = [source.stable_names(0, len(source)) for source in (images, latents)]
    assert names[0] == names[1] and len(images)


def test_a_share_that_leaves_nothing_is_refused(tmp_path):
    where = make_folder(tmp_path)
    with pytest.raises(ValueError, match="data.held_out_share is 0.001; it must leave something to 'held_out'"):
        data.open_source("folder", str(tmp_path / "cache"), "held_out", held_out_share=0.001, **where)


# Parts by names of files and folders.

NAMES = {
    "train-00000-of-00002.parquet": "train", "train-00001-of-00002.parquet": "train", "test-00000.parquet": "test",
    "imagenet-val-000000.parquet": "val", "Validation.parquet": "validation", "x_test.parquet": "test",
    "training.parquet": "training", "retrained.parquet": "", "contest-1.parquet": "", "data-0.parquet": "",
}  # fmt: skip


def test_names_of_files_tell_the_part():
    at = Location("", path="somewhere")
    told = {name: split for name, split in NAMES.items() if split}
    found = by_split([epath.Path(name) for name in told], at)
    assert {path.name: split for split, paths in found.items() for path in paths} == told
    assert set(by_split([epath.Path(name) for name in NAMES if not NAMES[name]], at)) == {""}
    with pytest.raises(ValueError, match="whose name does not tell its part, as retrained.parquet"):
        by_split([epath.Path(name) for name in NAMES], at)


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"image": [{"bytes": encoded(IMAGES[i]), "path": None} for i in rows], "label": [LABELS[i] for i in rows]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


@pytest.mark.parametrize("layout", ["{split}-0.parquet", "data/{split}-00000-of-00001.parquet", "{split}/0000.parquet"])
def test_parquet_files_as_hubs_lay_them_out(layout, tmp_path):
    write_parquet(tmp_path / layout.format(split="train"), range(9))
    write_parquet(tmp_path / layout.format(split="test"), range(9, 12))
    (tmp_path / "README.md").write_text("about")

    def rows(split, share=0.0):
        where = {"path": str(tmp_path), "num_classes": 2, "held_out_share": share}
        source = data.open_source("parquet", str(tmp_path / "cache"), split, **where)
        return [next(k for k in range(12) if np.array_equal(source[i]["image"], IMAGES[k])) for i in range(len(source))]

    assert rows("train") == list(range(9)) and rows("test") == [9, 10, 11]
    # A share comes out of what is trained on.
    assert sorted(rows("train", SHARE) + rows("held_out", SHARE)) == list(range(9)) and rows("test", SHARE) == [
        9,
        10,
        11,
    ]
    with pytest.raises(data.UnknownSplit, match="'nonsense'; it must be one of t.*t"):
        rows("nonsense")


def test_class_folders_below_parts_have_labels_in_common(tmp_path):
    """A class that one part lacks does not shift the labels of the others."""
    for split, label, i in (("train", "ant", 0), ("train", "bee", 1), ("train", "cat", 2), ("test", "cat", 3),
                            ("test", "dog", 4)):  # fmt: skip
        path = tmp_path / "images" / split / label / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(IMAGES[i]))
    found = {}
    for split in ("train", "test"):
        source = data.open_source("folder", str(tmp_path / "cache"), split, path=str(tmp_path / "images"))
        assert source.class_names == ("ant", "bee", "cat", "dog")
        found |= {source.identity(i): source[i]["label"] for i in range(len(source))}
    assert found == {"ant/0.png": 0, "bee/1.png": 1, "cat/2.png": 2, "cat/3.png": 2, "dog/4.png": 3}


def test_images_in_folders_named_by_parts_are_no_classes(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "mine" / split).mkdir(parents=True)
        (tmp_path / "mine" / split / "0.png").write_bytes(encoded(IMAGES[0]))
    for split in ("train", "test"):
        source = data.open_source("folder", str(tmp_path / "cache"), split, path=str(tmp_path / "mine"))
        assert source.class_names == ("mine",) and len(source) == 1
    shutil.rmtree(tmp_path / "mine" / "test")  # a class of trains
    assert data.open_source("folder", str(tmp_path / "cache"), path=str(tmp_path / "mine")).class_names == ("train",)


def test_manifests_and_shards_of_parts(tmp_path):
    make_manifest(tmp_path)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").unlink()
    (tmp_path / "train.jsonl").write_text("\n".join(lines[:8]))
    (tmp_path / "val.jsonl").write_text("\n".join(lines[8:]))
    (tmp_path / "made").mkdir()
    make_shards(tmp_path / "made")
    shutil.copytree(tmp_path / "made" / "shards", tmp_path / "encoded" / "train")
    shutil.copytree(tmp_path / "made" / "shards", tmp_path / "encoded" / "held_out")
    for name, path, other, counts in (("manifest", tmp_path, "val", (8, 4)),
                                      ("shards", tmp_path / "encoded", "held_out", (12, 12))):  # fmt: skip
        sources = [data.open_source(name, str(tmp_path / "cache"), split, path=str(path)) for split in ("train", other)]
        assert tuple(map(len, sources)) == counts
        with pytest.raises(data.UnknownSplit, match="one of .*train"):
            data.open_source(name, str(tmp_path / "cache"), "test", path=str(path))


def test_lines_of_one_image_are_in_one_part(tmp_path):
    where = make_manifest(tmp_path)
    entry = {"captions": "again"}
    more = [json.dumps(entry | {"image_file": f"sub/./{i}.png"}) for i in range(12)]
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write("\n" + "\n".join(more))
    parts = [data.open_source("manifest", str(tmp_path / "cache"), split, held_out_share=SHARE, **where)
             for split in ("train", "held_out")]  # fmt: skip
    seen = [set(contents(part)) for part in parts]
    assert [len(part) for part in parts] == [2 * len(images) for images in seen] and not seen[0] & seen[1]


def test_a_mixture_holds_out_of_each_source(tmp_path):
    where = make_folder(tmp_path)
    settings = Inputs("folder", (8, 8), 3, 2, mixture=(("folder", where["path"], 1.0), ("folder", where["path"], 2.0)),
                      held_out_share=SHARE, directory=str(tmp_path / "cache"),
                      bucketing=data.Bucketing(table=((8, 8),), batch_size=1,
                                               fitting=data.Fitting(max_cropped=0.9)))  # fmt: skip
    train, held_out = (open_data(settings, split)[0] for split in ("train", "held_out"))
    assert len(train) + len(held_out) == 2 * len(IMAGES) and not set(contents(train)) & set(contents(held_out))
    with pytest.raises(data.UnknownSplit, match="evaluation.held_out is 'test'"):
        open_data(settings, "test")
    with pytest.raises(data.UnknownSplit, match="data.split is 'test'"):
        open_data(dataclasses.replace(settings, split="test"))
