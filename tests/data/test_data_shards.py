"""This project's own shards: changed files are refused, and text and features ride along."""

import os

import numpy as np
import pytest

from tests.helpers.sources import IMAGES, LATENTS, ROWS, cut, make_shards
from tim_jax import data
from tim_jax.data import shard_files
from tim_jax.data.bad_records import BadRecord
from tim_jax.data.sizes import read_sizes
from tim_jax.data.sources import shards


@pytest.mark.parametrize(
    "damage, told",
    [
        (lambda path: cut(path, 0.5), "another size"),
        (lambda path: path.unlink(), "not there"),
        (lambda path: (path.parent / "about.json").unlink(), "about.json"),
        (lambda path: (path.parent / "about.json").write_text("{}"), "about.json"),
    ],
)
def test_shards_that_are_not_what_their_manifest_says_are_refused(damage, told, tmp_path):
    where = make_shards(tmp_path)
    damage(sorted((tmp_path / "shards").glob("*.array_record"))[1])
    with pytest.raises(ValueError, match=f"data.path.*{told}") as error:
        data.open_source("shards", str(tmp_path / "cache"), **where)
    assert "\n" not in str(error.value)


def test_a_damaged_shard_of_the_right_size_makes_bad_records_and_is_found_by_its_checksum(tmp_path):
    where = make_shards(tmp_path)
    path = sorted((tmp_path / "shards").glob("*.array_record"))[1]
    path.write_bytes(bytes(len(path.read_bytes())))
    source = data.open_source("shards", str(tmp_path / "cache"), **where)
    np.testing.assert_array_equal(source[4]["image"], IMAGES[4])
    with pytest.raises(BadRecord, match="shard"):
        source[5]
    with pytest.raises(ValueError, match=f"checksum.*{path.name}"):
        shard_files.verify(tmp_path / "shards")


def test_labels_that_are_whole_floats_are_labels_and_others_are_bad_records(tmp_path):
    labels = [1.0, np.float32(1), np.int32(0), 0, 0.5]
    data.write_shards(tmp_path / "shards", ({"latent": LATENTS[0], "label": label} for label in labels), num_classes=2)
    source = data.open_source("shards", str(tmp_path), path=str(tmp_path / "shards"))
    assert [source[i]["label"] for i in range(4)] == [1, 1, 0, 0]
    with pytest.raises(BadRecord, match="label: 0.5"):
        source[4]


def test_text_features_ride_along_and_the_empty_prompt_is_kept_once(tmp_path):
    """Those of the caption that is drawn, at their true length in bfloat16; padding is as the empty prompt ends."""
    rng = np.random.default_rng(0)
    null = {"text": rng.standard_normal((5, 3)).astype(np.float32), "mask": np.arange(5) < 1}
    rows = [
        {
            "latent": LATENTS[i],
            "captions": ["one", "another"],
            "texts": [rng.integers(-9, 9, (length, 3)).astype(np.float32) for length in (1 + i % 5, 2)],
            "features": rng.standard_normal((2, 3, 4, 7)).astype(np.float32),
        }
        for i in range(ROWS)
    ]
    data.write_shards(tmp_path / "shards", rows, null=null)
    source = data.open_source("shards", str(tmp_path), path=str(tmp_path / "shards"))
    assert source[3]["texts"][0].dtype == "bfloat16"
    how = data.Bucketing(table=((6, 8),), batch_size=6, grid=data.Grid(side=2), fitting=data.Fitting(resize=False))
    plan = data.make_plan(source, read_sizes(source, tmp_path), how, tmp_path)
    batch = data.global_batches(source, plan, 0, augmentation=data.Augmentation(flip=0.5, side=2))[0]
    assert set(batch["caption"]) == {"one", "another"}
    mirrored = []
    for k, i in enumerate(batch["index"]):
        text = rows[i]["texts"][int(batch["caption"][k] == "another")]
        np.testing.assert_array_equal(batch["text"][k], np.concatenate([text, null["text"][[-1] * (5 - len(text))]]))
        np.testing.assert_array_equal(batch["mask"][k], np.arange(5) < len(text))
        mirrored.append(bool((batch["x"][k] == np.moveaxis(LATENTS[i, 1], 0, -1)).all()))
        np.testing.assert_array_equal(batch["features"][k], rows[i]["features"][int(mirrored[-1])].reshape(12, 7))
    assert len(set(mirrored)) == 2 and batch["features_mask"].all()
    for name in ("text", "mask"):
        np.testing.assert_array_equal(batch[f"null_{name}"], null[name][None])


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"texts": [np.zeros((2, 3))]}, "metadata"),  # two captions
        ({"texts": [np.zeros((2, 3)), np.full((1, 3), np.nan)]}, "not finite"),
        ({"features": np.zeros((3, 4, 7), np.float32)}, "features"),
    ],
)
def test_features_that_do_not_fit_are_bad_records(change, reason, tmp_path):
    row = {"latent": LATENTS[0], "captions": ["one", "another"], "texts": [np.zeros((2, 3)), np.zeros((1, 3))]}
    data.write_shards(tmp_path / "shards", [row, row | change])
    source = data.open_source("shards", str(tmp_path), path=str(tmp_path / "shards"))
    assert source[0]["label"] == 0
    with pytest.raises(BadRecord, match=reason):
        source[1]


def test_few_of_many_shards_are_open_at_a_time(tmp_path, monkeypatch):
    """Of 100,000 shards, which a process could not have open together, each is read as if it were alone."""
    monkeypatch.setattr(shards, "MAX_OPEN", 3)
    rows = [{"latent": LATENTS[i % len(LATENTS)], "label": i} for i in range(20)]
    data.write_shards(tmp_path / "shards", rows, num_classes=20, examples_per_shard=1)
    source = data.open_source("shards", str(tmp_path / "cache"), path=str(tmp_path / "shards"))
    for i in np.random.default_rng(0).permutation(40) % 20:
        assert source[int(i)]["label"] == i
        opened = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        assert 1 <= sum(str(tmp_path) in path for path in opened) <= 3
