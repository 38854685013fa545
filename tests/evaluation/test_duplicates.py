"""Copies of images within the training part, and across it and what is held out, are counted and warned of."""

import shutil

import jax
import numpy as np
import pytest
from absl import logging
from PIL import Image

from tests.helpers.configs import TINY_NETWORK
from tests.helpers.workdirs import one_device
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.evaluation import duplicates, summaries
from tim_jax.runs import measuring

KEYS = {
    **TINY_NETWORK, "data.source": "folder", "data.buckets.table": "((8, 8),)", "data.batch_size": "4",
    "model.num_classes": "2", "evaluation.batch_size": "16", "evaluation.metrics": "('frechet',)",
    "data.buckets.enlarge": "True",
}  # fmt: skip


@pytest.fixture
def images(tmp_path):
    """Train: 20 images, two of them twice and one of them three times. Val: 8, of which three are among them."""
    levels = np.random.default_rng(0).integers(0, 256, (25, 8, 8), np.uint8)
    parts = {"train": [*range(20), 0, 5, 5, 1], "val": [3, 4, 4, 20, 21, 22, 23, 23]}
    for part, numbers in parts.items():
        for place, number in enumerate(numbers):
            path = tmp_path / "images" / part / f"class {place % 2}" / f"{place:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(levels[number]).save(path, compress_level=place % 10)  # copies differ as files
    return {"data.path": str(tmp_path / "images"), "loader.directory": str(tmp_path / "cache")}


def measured(images, **more):
    with one_device():
        return measuring.open_measurement(build(load_config("digits", KEYS | images | more), jax.devices()[:1]))


COUNTED = {
    "training": 24, "training_repeats": 4, "held_out": 8, "held_out_repeats": 2, "held_out_in_training": 3,
}  # fmt: skip


def test_duplicates_are_counted_told_and_kept_with_the_reference(images, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
    assert measured(images).duplicates == COUNTED
    assert len(said) == 1 and "3 of 8 held-out images are in the training part" in said[0]
    text = duplicates.sentence(COUNTED)
    assert "4 of 24 training images are copies" in text and "3 held-out images are in the training part" in text

    def unread(*_):
        raise AssertionError("images are read again")

    monkeypatch.setattr(duplicates, "digests", unread)
    again = measured(images)
    assert again.duplicates == COUNTED and len(said) == 2
    assert again.real_images(6, [0])["duplicates"] == COUNTED


def test_what_is_trained_on_is_looked_at_where_samples_are_compared_with_other_images(images, tmp_path, monkeypatch):
    """All images are trained on, from a folder without parts; others are named to compare with, and hold some out."""
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
    for path in (tmp_path / "images").glob("*/*/*.png"):
        new = tmp_path / "all" / path.parent.name / f"{path.parts[-3]} {path.name}"
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, new)
    keys = {"data.path": str(tmp_path / "all"), "evaluation.source": "folder", "evaluation.path": images["data.path"]}
    found = measured(images, **keys).duplicates
    assert found["training"] == 32 and found["held_out_in_training"] == found["held_out"] == 8
    assert len(said) == 1 and "8 of 8 held-out images" in said[0]
    shutil.rmtree(tmp_path / "all")
    assert measured(images, **keys).duplicates == COUNTED, "of the part named train, as what is trained on is gone"
    assert "not looked for among those that are trained on: data.path is" in said[1]


def test_nothing_is_said_of_what_is_not_known_or_not_wrong(images, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
    alone = measured(images, **{"evaluation.held_out": ""})
    assert alone.duplicates == {"training": 24, "training_repeats": 4}
    assert said == ["evaluation.held_out is '': samples are compared with what is trained on alone"]
    assert duplicates.count({"": {}}) == {} and duplicates.sentence({}) == "" and duplicates.warning({}) == ""
    without = COUNTED | {"held_out_in_training": 0}
    assert duplicates.warning(without) == ""


def test_counts_are_those_of_comparing_all_pairs():
    rng = np.random.default_rng(0)
    parts = {"": rng.integers(0, 3, (200, 2, 2, 1)), "_held_out": rng.integers(0, 3, (60, 2, 2, 1))}
    parts = {name: images.astype(np.float32) for name, images in parts.items()}
    some = {name: {duplicates.DIGESTS: summaries.Digests(duplicates.digests(x))} for name, x in parts.items()}

    def same(a, b):
        return (a[:, None] == b[None]).all(axis=(2, 3, 4))

    repeats = [int(np.tril(same(x, x), -1).any(axis=1).sum()) for x in parts.values()]
    crossing = int(same(parts["_held_out"], parts[""]).any(axis=1).sum())
    assert duplicates.count(some) == {
        "training": 200, "training_repeats": repeats[0], "held_out": 60, "held_out_repeats": repeats[1],
        "held_out_in_training": crossing,
    }  # fmt: skip
    assert 0 < crossing < 60 and 0 < repeats[1]
