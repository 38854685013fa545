"""Class folders as people have them: what systems leave in them, nested folders, endings; and all of it told."""

import json
import os

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from tests.helpers.sources import IMAGES, encoded
from tim_jax import data
from tim_jax.data.decode import ENDINGS, FORMATS
from tim_jax.data.summary import labels, summary

JPEG = encoded(IMAGES[0], "JPEG")


@pytest.fixture
def untidy(tmp_path):
    """A folder as a phone and a Mac leave it."""
    root = tmp_path / "pets"
    for name, content in {
        "cat/0.jpg": JPEG, "cat/1.JFIF": JPEG, "cat/2.heic": b"heic", "cat/3.HEIC": b"heic", "cat/._0.jpg": b"mac",
        "cat/.DS_Store": b"mac", "cat/Thumbs.db": b"windows", "cat/2024/summer/4.jpeg": JPEG, "cat/2024/5.png": JPEG,
        "dog/0.jpg": JPEG, "dog/0.txt": b"a dog", "dog/README": b"?", "dog/__MACOSX/0.jpg": JPEG,
        "__MACOSX/cat/._0.jpg": b"mac", "lost+found/1.jpg": JPEG, ".trash/2.jpg": JPEG, "notes/plan.md": b"text",
        "stray.png": JPEG, "._stray.png": b"mac",
    }.items():  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / "empty").mkdir()
    (root / "zebra").mkdir()
    (root / "zebra" / "0.jpg").symlink_to(root / "dog" / "0.jpg")
    return root


def open_folder(root):
    return data.open_source("folder", str(root.parent / "cache"), path=str(root))


def test_classes_are_folders_with_images_and_nothing_else(untidy):
    source = open_folder(untidy)
    assert source.class_names == ("cat", "dog", "zebra") and source.num_classes == 3
    found = {source.identity(i): source[i]["label"] for i in range(len(source))}
    assert found == {
        "cat/0.jpg": 0, "cat/1.JFIF": 0, "cat/2024/5.png": 0, "cat/2024/summer/4.jpeg": 0, "dog/0.jpg": 1,
        "zebra/0.jpg": 2,
    }  # fmt: skip


def test_nothing_is_left_out_without_a_word(untidy):
    """Counted by walking the folder once more, in another way."""
    source = open_folder(untidy)
    assert source.left_out == {
        ".db files": 1, ".heic files": 2, ".md files": 1, ".txt files": 1, "files outside class folders": 1,
        "folders without examples": 2, "hidden files": 3, "hidden folders": 4, "other files": 1,
    }  # fmt: skip
    files = [path.relative_to(untidy) for path in untidy.rglob("*") if path.is_file()]
    junk = [path for path in files if {"__MACOSX", "lost+found", ".trash"} & set(path.parts)]
    counted = sum(n for what, n in source.left_out.items() if "folders" not in what or "outside" in what)
    assert len(files) == len(source) + counted + len(junk)


def test_summary_tells_labels_and_what_is_left_out(untidy):
    source = open_folder(untidy)
    how = data.Bucketing(table=((4, 4),), batch_size=1, fitting=data.Fitting(max_cropped=0.9))
    plan = data.make_plan(source, data.read_sizes(source, untidy.parent), how, untidy.parent)
    lines = summary(source, plan).splitlines()
    assert lines[-1] == "labels: 0 cat, 1 dog, 2 zebra"
    assert lines[-2].startswith("left out: .db files 1, .heic files 2")
    assert labels(tuple(f"n{i}" for i in range(1000))).endswith("23 n23 and 976 more, the last n999")


def test_labels_that_are_numbers_are_not_listed(embedded):
    source = data.open_source("digits", str(embedded))
    assert source.class_names == tuple("0123456789")
    assert "labels" not in summary(source, data.one_bucket(source, 8))


def test_names_of_labels_in_parquet_files_of_hubs(tmp_path):
    """Written as the library of that hub writes them: JSON under a key of the schema."""
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    columns = pyarrow.table({"image": [encoded(image) for image in IMAGES[:4]], "label": [0, 1, 1, 0]})
    for folder, beside in (("named", about), ("plain", None), ("broken", {b"huggingface": b"{"})):
        (tmp_path / folder).mkdir()
        pyarrow.parquet.write_table(columns.replace_schema_metadata(beside), tmp_path / folder / "0.parquet")
        for classes in (0, 2):
            source = data.open_source("parquet", str(tmp_path), path=str(tmp_path / folder), num_classes=classes)
            assert source.class_names == (("cat", "dog") if folder == "named" and classes else ())


def test_all_that_pillow_reads_in_these_formats_counts():
    Image.init()
    known = {ending for ending, form in Image.registered_extensions().items() if form in FORMATS}
    assert known - set(ENDINGS) == {".pfm"}  # floats of unknown range
    assert set(ENDINGS) <= known | {".avif", ".avifs"}  # not in every build


def test_a_link_in_a_circle_is_not_followed_forever(tmp_path):
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    (tmp_path / "pets" / "cat" / "0.jpg").write_bytes(JPEG)
    (tmp_path / "pets" / "cat" / "again").symlink_to(tmp_path / "pets" / "cat")
    (tmp_path / "pets" / "cat" / "up").symlink_to(tmp_path / "pets")
    source = open_folder(tmp_path / "pets")
    assert [source.identity(i) for i in range(len(source))] == ["cat/0.jpg"]


def test_what_comes_later_in_a_nested_folder_is_seen(untidy):
    before = open_folder(untidy)
    (untidy / "cat" / "2024" / "summer" / "6.jpg").write_bytes(JPEG)
    after = open_folder(untidy)
    assert len(after) == len(before) + 1 and after.fingerprint() != before.fingerprint()


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX only")
def test_names_that_are_not_text_are_read(tmp_path):
    folder = tmp_path / "pets" / "cat"
    folder.mkdir(parents=True)
    with open(os.fsencode(folder) + b"/\xff.jpg", "wb") as file:
        file.write(JPEG)
    source = open_folder(tmp_path / "pets")
    np.testing.assert_array_equal(source[0]["image"].shape, IMAGES[0].shape)
