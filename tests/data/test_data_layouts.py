"""Bad rows of latents, tar shards and Parquet files: each with its reason."""

import io
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import safetensors.numpy
from PIL import Image

from tests.helpers.configs import inputs_of
from tests.helpers.sources import encoded
from tim_jax import data
from tim_jax.config.command_line import load_config
from tim_jax.data.bad_records import BadRecord

LATENT = np.random.default_rng(0).standard_normal((2, 4, 6, 8)).astype(np.float32)
LABEL = np.array([1], np.int64)


def changed(value):
    latent = LATENT.copy()
    latent[1, 2, 3, 4] = value
    return latent


BAD_LATENTS = {
    "nan": ({"latent": changed(np.nan), "label": LABEL}, "not finite"),
    "infinity": ({"latent": changed(np.inf), "label": LABEL}, "not finite"),
    "five channels": ({"latent": np.zeros((2, 5, 6, 8), np.float32), "label": LABEL}, "channels"),
    "not flipped": ({"latent": LATENT[:1], "label": LABEL}, "channels"),
    "three axes": ({"latent": LATENT[0], "label": LABEL}, "channels"),
    "no latent": ({"moments": LATENT, "label": LABEL}, "metadata"),
    "no label": ({"latent": LATENT}, "label"),
    "label too large": ({"latent": LATENT, "label": LABEL + 9}, "label"),
    "label below 0": ({"latent": LATENT, "label": LABEL - 2}, "label"),
    "two labels": ({"latent": LATENT, "label": np.array([0, 1])}, "label"),
    "label between": ({"latent": LATENT, "label": np.float32(0.5)[None]}, "label"),
    "label is nan": ({"latent": LATENT, "label": np.float32(np.nan)[None]}, "label"),
    "label is true": ({"latent": LATENT, "label": np.array([True])}, "label"),
}
# The official preprocessing writes the first; other tools the rest.
WHOLE_LABELS = {
    "float32 scalar": np.array(1.0, np.float32),
    "float64": np.array([1.0]),
    "float16": np.array([1.0], np.float16),
    "int32 scalar": np.array(1, np.int32),
    "uint8": np.array([[1]], np.uint8),
}


def test_bad_latents_have_their_reasons(tmp_path):
    for k, name in enumerate("ab"):
        (tmp_path / "latents" / name).mkdir(parents=True)
        path = tmp_path / "latents" / name / f"{k}.safetensors"
        safetensors.numpy.save_file({"latent": LATENT, "label": LABEL}, path)
    whole = safetensors.numpy.save({"latent": LATENT, "label": LABEL})
    expected = {"a/0.safetensors": None, "b/1.safetensors": None}
    for name, (arrays, reason) in BAD_LATENTS.items():
        safetensors.numpy.save_file(arrays, tmp_path / "latents" / "b" / f"{name}.safetensors")
        expected[f"b/{name}.safetensors"] = {reason}
    for name, content, reason in (
        ("empty", b"", {"empty"}),
        ("cut", whole[:-9], {"truncated", "unreadable"}),
        ("text", b"not safetensors", {"unreadable"}),
    ):
        (tmp_path / "latents" / "b" / f"{name}.safetensors").write_bytes(content)
        expected[f"b/{name}.safetensors"] = reason
    source = data.open_source("latents", str(tmp_path), path=str(tmp_path / "latents"), channels=4)
    assert len(source) == len(expected)
    for i in range(len(source)):
        reasons = expected[source.identity(i)]
        if reasons is None:
            np.testing.assert_array_equal(source[i]["image"], np.moveaxis(LATENT[0], 0, -1))
        else:
            with pytest.raises(BadRecord) as error:
                source[i]
            assert error.value.reason in reasons, source.identity(i)


@pytest.mark.parametrize("name", WHOLE_LABELS)
def test_labels_of_latents_may_be_whole_numbers_of_any_type(name, tmp_path):
    for folder in "ab":
        (tmp_path / "latents" / folder).mkdir(parents=True)
        path = tmp_path / "latents" / folder / "0.safetensors"
        safetensors.numpy.save_file({"latent": LATENT, "label": WHOLE_LABELS[name]}, path)
    source = data.open_source("latents", str(tmp_path), path=str(tmp_path / "latents"), channels=4)
    label = source[0]["label"]
    assert label == 1 and type(label) is int


def test_labels_of_latents_are_of_all_classes_also_where_only_some_folders_are_there(tmp_path):
    (tmp_path / "latents" / "n02097474").mkdir(parents=True)
    path = tmp_path / "latents" / "n02097474" / "0.safetensors"
    safetensors.numpy.save_file({"latent": LATENT, "label": np.array(199, np.float32)}, path)
    at = {"path": str(tmp_path / "latents"), "channels": 4}
    assert data.open_source("latents", str(tmp_path), num_classes=200, **at)[0]["label"] == 199
    with pytest.raises(BadRecord, match="from 0 to 198"):
        data.open_source("latents", str(tmp_path), num_classes=199, **at)[0]


def test_the_size_of_latents_is_found_behind_a_long_header(tmp_path):
    (tmp_path / "latents" / "a").mkdir(parents=True)
    for name, more in (("short", {}), ("long", {"note": "x" * 9000})):
        arrays = {"latent": LATENT, "label": LABEL}
        safetensors.numpy.save_file(arrays, tmp_path / "latents" / "a" / f"{name}.safetensors", more)
    source = data.open_source("latents", str(tmp_path), path=str(tmp_path / "latents"), channels=4)
    assert source.headers(0, 2) == [(6, 8), (6, 8)]


def png():
    """Bytes of a good picture."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((48, 32, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PNG = png()
BAD_TAR_ROWS = {
    "label is not a number": ({"png": PNG, "cls": b"cat", "txt": b"a"}, "label"),
    "label too large": ({"png": PNG, "cls": b"2", "txt": b"a"}, "label"),
    "label between": ({"png": PNG, "cls": b"0.5", "txt": b"a"}, "label"),
    "label is nan": ({"png": PNG, "json": b'{"label": NaN, "caption": "a"}'}, "label"),
    "no label": ({"png": PNG, "txt": b"a"}, "label"),
    "no text": ({"png": PNG, "cls": b"1"}, "caption"),
    "empty text": ({"png": PNG, "cls": b"1", "txt": b""}, "caption"),
    "text is not UTF-8": ({"png": PNG, "cls": b"1", "txt": b"\xff"}, "metadata"),
    "json is broken": ({"png": PNG, "json": b"{"}, "metadata"),
    "no image": ({"cls": b"1", "txt": b"a"}, "missing"),
    "empty image": ({"png": b"", "cls": b"1", "txt": b"a"}, "empty"),
}


def test_bad_rows_of_tar_shards_have_their_reasons(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        good = {"good": ({"png": PNG, "cls": b"1", "txt": b"a"}, "")}
        good |= {"float": ({"png": PNG, "cls": b"1.0", "txt": b"a"}, "")}
        good |= {"json float": ({"png": PNG, "json": b'{"label": 1.0, "caption": "a"}'}, "")}
        for name, (files, _) in (good | BAD_TAR_ROWS).items():
            for ending, content in files.items():
                about = tarfile.TarInfo(f"{name}.{ending}")
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
    source = data.open_source("tar", str(tmp_path), path=str(tmp_path / "0.tar"), num_classes=2)
    assert [source[i]["label"] for i in range(3)] == [1, 1, 1]
    for i, (name, (_, reason)) in enumerate(BAD_TAR_ROWS.items(), 3):
        (found,) = source.headers(i, i + 1)
        assert isinstance(found, BadRecord) and found.reason == reason, name


def members(path, rows):
    """Writes a tar file of (name, content, or the name that a link of some type leads to)."""
    with tarfile.open(path, "w") as tar:
        for name, content, *link in rows:
            about = tarfile.TarInfo(name)
            if link:
                about.type, about.linkname = link[0], content
                tar.addfile(about)
            else:
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))


def test_members_of_one_name_and_links_are_what_unpacking_gives(tmp_path):
    """Expected is what Python's own unpacking leaves on the disk."""
    shapes = {name: (8 + i, 9, 3) for i, name in enumerate(("a", "b", "c", "d", "e"))}
    images = {name: encoded(np.full(shape, 9, np.uint8)) for name, shape in shapes.items()}
    rows = [("1.png", images["a"]), ("1.txt", b"first"), ("2.png", images["b"]), ("2.txt", b"two"),
            ("1.png", images["c"]), ("1.txt", b"second"),  # appended later, as `tar --append` does
            ("3.png", "2.png", tarfile.LNKTYPE), ("3.txt", b"three"),
            ("./deep/4.png", "./3.png", tarfile.LNKTYPE), ("deep/4.txt", "../2.txt", tarfile.SYMTYPE),
            ("5.jfif", encoded(np.zeros((20, 9, 3), np.uint8), "JPEG")), ("5.txt", b"five")]  # fmt: skip
    members(tmp_path / "0.tar", rows)
    with tarfile.open(tmp_path / "0.tar") as tar:
        tar.extractall(tmp_path / "unpacked", filter="fully_trusted")
    source = data.open_source("tar", str(tmp_path / "cache"), path=str(tmp_path / "0.tar"))
    seen = {}
    for i in range(len(source)):
        stem = source.identity(i).removeprefix("0.tar:")
        (path,) = (p for p in (tmp_path / "unpacked").glob(f"{stem}.*") if p.suffix in (".png", ".jfif"))
        np.testing.assert_array_equal(source[i]["image"], np.asarray(Image.open(path)))
        seen[stem] = source[i]["captions"]
        assert seen[stem] == (path.with_suffix(".txt").read_text(),)
    assert seen.keys() == {"1", "2", "3", "deep/4", "5"}
    assert source.left_out == {"earlier files of a name": 2}


def test_what_a_tar_file_has_besides_is_counted(tmp_path):
    rows = [("1.png", PNG), ("1.txt", b"a"), ("1.jpg", PNG), ("2.heic", b"x"), ("._1.png", b"x"), ("1.seg.png", PNG),
            ("3.png", "nowhere.png", tarfile.LNKTYPE), ("4.png", "5.png", tarfile.SYMTYPE),
            ("5.png", "4.png", tarfile.SYMTYPE), ("6.xmp", b"x"), ("7.XMP", b"x")]  # fmt: skip
    members(tmp_path / "0.tar", rows)
    source = data.open_source("tar", str(tmp_path / "cache"), path=str(tmp_path / "0.tar"))
    assert len(source) == 1 and source.left_out == {
        ".heic files": 1, ".xmp files": 2, "files of several endings": 1, "further images of an example": 1,
        "hidden files": 1, "links to nothing": 3,
    }  # fmt: skip


def test_bad_rows_of_parquet_files_have_their_reasons(tmp_path):
    rows = [(PNG, 0, "a", None), (None, 0, "a", "missing"), (b"", 0, "a", "empty"), (PNG, None, "a", "label")]
    rows += [(PNG, 5, "a", "label"), (PNG, 0, None, "caption"), (PNG, 0, "", "caption")]
    rows += [(b"x", 0, "a", "unreadable")]
    images, labels, texts, reasons = zip(*rows, strict=True)
    table = pyarrow.table({"image": list(images), "label": list(labels), "text": list(texts)})
    pyarrow.parquet.write_table(table, tmp_path / "0.parquet")
    source = data.open_source("parquet", str(tmp_path), path=str(tmp_path), num_classes=2)
    for i, reason in enumerate(reasons):
        (found,) = source.headers(i, i + 1)
        assert getattr(found, "reason", None) == reason, i


def test_labels_of_parquet_files_may_be_floats(tmp_path):
    labels = pyarrow.array([0.0, 1.0, 0.5, float("nan"), 2.0], pyarrow.float32())
    table = pyarrow.table({"image": [PNG] * 5, "label": labels})
    pyarrow.parquet.write_table(table, tmp_path / "0.parquet")
    source = data.open_source("parquet", str(tmp_path), path=str(tmp_path), num_classes=2)
    assert [source[i]["label"] for i in range(2)] == [0, 1]
    assert [getattr(found, "reason", None) for found in source.headers(0, 5)] == [None, None, "label", "label", "label"]


# Captions that a run by class does not read.


def write_tar(path, rows):
    with tarfile.open(path, "w") as tar:
        for i, files in enumerate(rows):
            for ending, content in files.items():
                about = tarfile.TarInfo(f"{i:03}.{ending}")
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))


def odd_captions(name, root):
    """Four images with labels 0, 1, 0, 1 of which the first alone has a caption that can be used."""
    root.mkdir()
    if name == "tar":
        texts = [{"txt": b"a"}, {"txt": b"\xff"}, {"json": b"{"}, {}]
        write_tar(root / "0.tar", [{"png": PNG, "cls": str(i % 2).encode()} | text for i, text in enumerate(texts)])
    if name == "parquet":
        table = pyarrow.table({"image": [PNG] * 4, "label": [0, 1, 0, 1], "caption": ["a", "", None, "  "]})
        pyarrow.parquet.write_table(table, root / "0.parquet")
    if name == "shards":
        rows = [{"image": PNG, "label": i % 2, "captions": [text]} for i, text in enumerate(("a", "", " ", "\ud800"))]
        data.write_shards(root / "rows", rows, num_classes=2)
        return root / "rows"
    return root


@pytest.mark.parametrize("name", ["tar", "parquet", "shards"])
def test_captions_that_are_not_read_make_no_bad_record(name, tmp_path):
    where = {"directory": str(tmp_path / "cache"), "path": str(odd_captions(name, tmp_path / "data")), "num_classes": 2}
    by_text, by_class = data.open_source(name, **where), data.open_source(name, captions=False, **where)
    assert by_text.captions and by_text[0]["captions"] == ("a",) and not by_class.captions
    for i in range(4):
        assert by_class[i]["label"] == i % 2 and "captions" not in by_class[i]
        if i:
            with pytest.raises(BadRecord):
                by_text[i]
    assert data.read_sizes(by_class, tmp_path / "cache").bad == {}
    assert by_text.fingerprint() != by_class.fingerprint() or name == "shards"  # whose headers say nothing of captions


def test_labels_that_are_not_read_make_no_bad_record(tmp_path):
    rows = [{"png": PNG, "txt": b"a", "cls": label} for label in (b"1", b"cat")] + [
        {"png": PNG, "txt": b"a", "json": b"{"}
    ]
    write_tar(tmp_path / "0.tar", rows)
    source = data.open_source("tar", str(tmp_path), path=str(tmp_path))
    assert [source[i]["captions"] for i in range(3)] == [("a",)] * 3


def test_a_run_by_class_asks_for_no_captions():
    asked = {}
    for config, more in (("digits", {}), ("photos_t2i", {})):
        loaded = load_config(config, more)
        asked[loaded.model.condition] = inputs_of(loaded).captions
    assert asked == {"class": False, "text": True}
