"""Captioned images as people keep them: text files beside images, and the metadata files of hubs."""

import csv
import io
import json

import numpy as np
import pytest

from tests.helpers.sources import IMAGES, encoded
from tim_jax import data
from tim_jax.data.bad_records import BadRecord

TEXTS = ("a red fox", "eine Bärin, im Schnee", '"quoted", and\non two lines', "日本の城")
NAMES = tuple(f"picture {i}.png" for i in range(4))


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def put(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def rows(under="text", folder="", name="file_name", which=range(4)):
    return [{name: f"{folder}{NAMES[i]}", under: TEXTS[i]} for i in which]


IMAGE_FILES = {NAMES[i]: encoded(IMAGES[i]) for i in range(4)}
BESIDE = {NAMES[i].replace("png", "txt"): TEXTS[i] + "\n" for i in range(4)}
LAYOUTS = {
    "image.txt": IMAGE_FILES | BESIDE,
    "image.caption": IMAGE_FILES | {name.replace("txt", "caption"): text for name, text in BESIDE.items()},
    "image.txt with a byte order mark": IMAGE_FILES | {name: "\ufeff" + text for name, text in BESIDE.items()},
    "image.txt in folders": {f"{i % 2}/{name}": content for i in range(4) for name, content in
                             ((NAMES[i], IMAGE_FILES[NAMES[i]]), (NAMES[i].replace("png", "txt"), TEXTS[i]))},
    "metadata.jsonl": IMAGE_FILES | {"metadata.jsonl": jsonl(rows())},
    "metadata.csv": IMAGE_FILES | {"metadata.csv": table(rows())},
    "metadata.csv of a spreadsheet": IMAGE_FILES | {"metadata.csv": "\ufeff" + table(rows("prompt"))},
    "metadata.jsonl with folders": {f"images/{name}": content for name, content in IMAGE_FILES.items()}
    | {"metadata.jsonl": jsonl(rows("caption", "images/"))},
    "metadata.jsonl of several files": IMAGE_FILES | {"metadata.jsonl": jsonl(rows(name="image_file_name"))},
    "train/metadata.csv": {f"train/{name}": content for name, content in IMAGE_FILES.items()}
    | {"train/metadata.csv": table(rows()), "test/metadata.csv": table(rows(which=[0])),
       f"test/{NAMES[0]}": encoded(IMAGES[5])},
    "data/train/metadata.jsonl": {f"data/train/{name}": content for name, content in IMAGE_FILES.items()}
    | {"data/train/metadata.jsonl": jsonl(rows()), "data/test/metadata.jsonl": jsonl(rows(which=[0])),
       f"data/test/{NAMES[0]}": encoded(IMAGES[5])},
    "train/image.txt": {f"train/{name}": content for name, content in (IMAGE_FILES | BESIDE).items()}
    | {f"test/{NAMES[0]}": encoded(IMAGES[5]), f"test/{NAMES[0]}".replace("png", "txt"): TEXTS[0]},
}  # fmt: skip


def opened(root, split="train", **more):
    return data.open_source("folder", str(root.parent / "cache"), split, path=str(root), **more)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_image_has_its_caption(layout, tmp_path):
    root = put(tmp_path / "mine", LAYOUTS[layout])
    source = opened(root)
    found = {source[i]["captions"]: source[i]["image"] for i in range(len(source))}
    assert source.captions and sorted(found) == sorted((text,) for text in TEXTS)
    for i, text in enumerate(TEXTS):
        np.testing.assert_array_equal(found[text,], IMAGES[i])
    assert [source.annotations(i)["captions"] for i in range(4)] == [source[i]["captions"] for i in range(4)]
    assert data.read_sizes(source, tmp_path / "cache").bad == {}
    assert not [what for what in source.left_out if "txt" in what or "caption" in what]
    assert opened(root).fingerprint() == source.fingerprint()
    if any(name.removeprefix("data/").startswith("test/") for name in LAYOUTS[layout]):
        (only,) = opened(root, "test")
        assert only["captions"] == (TEXTS[0],)
        np.testing.assert_array_equal(only["image"], IMAGES[5])


@pytest.mark.parametrize("layout", ["image.txt", "metadata.csv", "train/image.txt"])
def test_a_run_by_class_reads_no_captions(layout, tmp_path):
    root = put(tmp_path / "mine", LAYOUTS[layout])
    source = opened(root, captions=False, num_classes=1)
    assert not source.captions and source.class_names == ("mine",) and [row["label"] for row in source] == [0] * 4
    assert source.fingerprint() != opened(root).fingerprint()


def test_a_held_out_share_moves_with_the_image_in_every_layout(tmp_path):
    """The same image is on the same side, whatever file its caption is in."""
    parts = []
    for layout in ("image.txt", "metadata.jsonl", "metadata.csv"):
        root = put(tmp_path / layout / "mine", LAYOUTS[layout])
        parts.append({row["captions"] for row in opened(root, "held_out", held_out_share=0.5)})
    assert parts[0] == parts[1] == parts[2] and 0 < len(parts[0]) < 4


@pytest.mark.parametrize(
    "files, message",
    [
        ({"metadata.jsonl": jsonl(rows(name="picture"))}, "metadata.jsonl must name the file of an image"),
        ({"metadata.csv": table(rows(under="about"))}, "its captions under captions or .*, and has file_name, about$"),
        ({"metadata.csv": table(rows()).replace(",", ";")}, "metadata.csv must name the file of an image"),
        ({"metadata.csv": "file_name,text\na.png,\xe4".encode("latin-1")}, "metadata.csv must be CSV in UTF-8"),
        ({"metadata.csv": "file_name,text\n"}, "must have at least one line"),
        ({"metadata.csv": ""}, "must have at least one line"),
        ({"metadata.jsonl": jsonl([{"file_names": ["a.png", "b.png"], "text": "a"}])}, "and has file_names, text"),
        ({"metadata.jsonl": jsonl(rows()), "metadata.csv": table(rows())}, "one manifest, .*csv, metadata.jsonl"),
        ({"notes.md": "no image"}, "in one folder per class or all in one folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_one_line(files, message, tmp_path):
    root = put(tmp_path / "mine", files)
    with pytest.raises(ValueError, match=message) as error:
        opened(root)
    assert "\n" not in str(error.value) and str(root) in str(error.value)


@pytest.mark.parametrize(
    "files, reason",
    [
        ({"metadata.jsonl": jsonl(rows() + [{"file_name": "gone.png", "text": "a"}])}, "missing: .*gone.png"),
        ({"metadata.jsonl": jsonl(rows() + [{"file_name": "../outside.png", "text": "a"}])}, "outside root"),
        ({"metadata.csv": table(rows() + [{"file_name": "/etc/hostname", "text": "a"}])}, "outside root: /etc"),
        ({"metadata.csv": table(rows() + [{"file_name": NAMES[0], "text": ""}])}, "caption: '', must be a text"),
        ({"metadata.csv": table(rows()) + f"{NAMES[0]}\n"}, "caption: None, must be a text"),
        ({"metadata.jsonl": jsonl([*rows(), {"file_name": NAMES[0]}])}, "caption: None, must be a text"),
        (BESIDE | {"without.png": encoded(IMAGES[4])}, "caption: there is no without.txt beside without.png"),
        (BESIDE | {"without.png": encoded(IMAGES[4]), "without.txt": " \n"}, "caption: '', must be a text"),
        (BESIDE | {"without.png": encoded(IMAGES[4]), "without.txt": b"\xff\xfe"}, "caption: without.txt is not UTF-8"),
    ],
)  # fmt: skip
def test_one_example_that_cannot_be_used_is_named_and_the_others_are_read(files, reason, tmp_path):
    (tmp_path / "outside.png").write_bytes(encoded(IMAGES[0]))
    source = opened(put(tmp_path / "mine", IMAGE_FILES | files))
    sizes = data.read_sizes(source, tmp_path / "cache")
    (bad,) = np.flatnonzero(sizes.height == 0)
    assert len(source) == 5 and sum(sizes.bad.values()) == 1
    with pytest.raises(BadRecord, match=reason):
        source[int(bad)]


def test_a_few_text_files_make_no_captions(tmp_path):
    source = opened(put(tmp_path / "mine", IMAGE_FILES | {"LICENSE.txt": "yours"}))
    assert not source.captions and source.left_out == {".txt files": 1}
