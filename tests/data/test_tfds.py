"""Data sets that TensorFlow Datasets itself prepared on disk, wherever they lie, and what cannot be read."""

import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.helpers.sources import IMAGES, LABELS, ROWS, Things, encoded
from tim_jax import data


class NeedsTensorFlow(Things):
    """A data set whose program decodes its files with TensorFlow."""

    def _generate_examples(self):
        from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as tf

        yield 0, {"image": tf.io.read_file("picture.png"), "label": 0, "caption": ""}


class Unreachable(Things):
    """A data set whose files cannot be downloaded."""

    def _split_generators(self, dl_manager):
        raise ConnectionError("no route to the files\nand more about it")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder of data sets as the library makes it, with `things`."""
    folder = tmp_path_factory.mktemp("tensorflow_datasets")
    builder = tfds.builder("things", data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return folder


@pytest.fixture
def keeps(prepared, monkeypatch):
    """TensorFlow Datasets keeps its data sets in the folder."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    return prepared


def check(source):
    assert len(source) == ROWS and source.num_classes == 2 and source.name == "things"
    for i in range(ROWS):
        np.testing.assert_array_equal(source[i]["image"], IMAGES[i])
        assert source[i]["label"] == LABELS[i]


@pytest.mark.parametrize("path", ["things", "things:2.1.0", "{folder}/things", "{folder}/things/2.1.0"])
def test_a_prepared_data_set_is_found_by_name_and_by_folder(path, keeps, tmp_path):
    check(data.open_source("tfds", str(tmp_path), path=path.format(folder=keeps)))
    assert not (tmp_path / "things").exists()  # nothing is made again


def test_the_newest_version_of_a_folder_is_taken(prepared, tmp_path):
    for version in ("2.1.0", "2.0.9", "10.0.0"):
        shutil.copytree(prepared / "things" / "2.1.0", tmp_path / "things" / version)
    source = data.open_source("tfds", str(tmp_path / "cache"), path=str(tmp_path / "things"))
    assert source.directory.endswith("10.0.0")
    check(source)


def test_a_data_set_is_read_without_its_program(prepared, tmp_path):
    """As on another machine: the library knows no builder of that name."""
    shutil.copytree(prepared / "things", tmp_path / "other_things")
    folder = tmp_path / "other_things" / "2.1.0"
    (folder / "dataset_info.json").write_text(
        (folder / "dataset_info.json").read_text().replace("things", "other_things")
    )
    for file in folder.glob("things-*"):
        file.rename(folder / f"other_{file.name}")
    source = data.open_source("tfds", str(tmp_path), path="other_things")
    assert source.name == "other_things"
    np.testing.assert_array_equal(source[0]["image"], IMAGES[0])


def test_a_data_set_that_is_not_there_is_prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    check(data.open_source("tfds", str(tmp_path), path="things"))
    assert (tmp_path / "things" / "2.1.0").is_dir()


REFUSED = {
    "no_such_data": "it must name a TensorFlow Datasets data set",
    "needs_tensor_flow": "prepared without TensorFlow.* with file_format='array_record' .*ensor.low",
    "unreachable": "can be prepared here .ConnectionError: no route to the files.$",
    "": "must be the name or folder",
    "{folder}/nowhere": "must be a folder that TensorFlow Datasets prepared",
    "{folder}": "must be a folder that TensorFlow Datasets prepared",
    "./things": "must be a folder that TensorFlow Datasets prepared",
    "things:7.7.7": "it must .*data set",
    "{folder}/damaged": "must be a data set that TensorFlow Datasets can open",
    "{folder}/records": "its files are tfrecord, but must be array_record",
    "records": "its files are tfrecord, but must be array_record",
}


@pytest.fixture(scope="module")
def faulty(prepared):
    """The folder with a damaged data set, and one in files without random access, as other programs make it."""
    for name in ("damaged", "records"):
        shutil.copytree(prepared / "things" / "2.1.0", prepared / name / "2.1.0")
        about = prepared / name / "2.1.0" / "dataset_info.json"
        about.write_text(about.read_text().replace("array_record", "tfrecord").replace("things", name))
    (prepared / "damaged" / "2.1.0" / "features.json").write_text('{"pythonClassName": "nowhere.Feature"}')
    return prepared


@pytest.mark.parametrize("path", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(path, faulty, keeps, tmp_path):
    with pytest.raises(ValueError, match=REFUSED[path]) as error:
        data.open_source("tfds", str(tmp_path), path=path.format(folder=faulty))
    assert "\n" not in str(error.value) and str(error.value).startswith("data.path is ")


def test_a_caption_that_is_not_text_is_a_bad_record(tmp_path):
    class OddCaptions(Things):
        def _generate_examples(self):
            for i, caption in enumerate([b"a", b"\xff\xfe"]):
                yield i, {"image": encoded(IMAGES[i]), "label": 0, "caption": caption}

    where = {"directory": str(tmp_path), "path": "odd_captions"}
    source = data.open_source("tfds", **where)
    assert source[0]["captions"] == ("a",)
    with pytest.raises(data.BadRecord, match="UTF-8"):
        source[1]
    assert data.open_source("tfds", captions=False, **where)[1]["label"] == 0
