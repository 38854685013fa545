"""From the official latents, with the images beside them, and from images, to the published recipe: all the way."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests.helpers import official, workdirs
from tests.helpers.configs import TINY_NETWORK, flags
from tim_jax import codecs, data, encode, sample, train
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.runs import input_pipeline

CONFIG = "imagenet256_b"  # 32 × 32 × 4 latents in patches of 4: 8 × 8 tokens, images of 128 × 128 beside them
SMALL = TINY_NETWORK | {
    "model.dtype": "float32", "model.projector_width": "16", "data.batch_size": "8", "data.features_width": "32",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    return root, official.make(root)


def of_latents(root, dino):
    """Keys of a run on official latents, beyond those that make it small."""
    return {
        "data.path": str(root / "latents"),
        "data.images": str(root / "images" / "train"),
        "codecs.image_encoder": str(dino),
        "loader.directory": str(root / "cache"),
    }


def opened(root, dino, **changes):
    """The input pipeline of a run on official latents."""
    keys = SMALL | of_latents(root, dino) | {name.replace("__", "."): str(value) for name, value in changes.items()}
    return input_pipeline.open_pipeline(build(load_config(CONFIG, keys), jax.devices()[:1]))


def test_a_batch_has_latents_labels_and_features_of_the_images_beside_them(made, published, tmp_path):
    root, files = made
    dino = published("dinov2_tiny")
    found = dataclasses.replace(opened(root, dino, data__flip=0.5), account=data.Account(tmp_path))
    raw, (batch, _) = found.dataset[0], next(found.batches(0))
    assert batch["x"].shape == (8, 32, 32, 4) and batch["features"].shape == (8, 64, 32)
    assert set(batch) == {"x", "label", "features", "features_mask"}
    module, params = codecs.load(dino, codecs.IMAGE_ENCODERS)
    features = jax.jit(lambda images: module.apply({"params": params}, images, (8, 8), method="features"))
    mirrored = []
    for i, index in enumerate(raw["index"]):
        image, latents, label = files[found.source.identity(int(index))]
        x = np.moveaxis(np.asarray(batch["x"][i]), -1, 0)
        mirrored.append(bool((x == latents[1]).all()))
        np.testing.assert_array_equal(x, latents[int(mirrored[-1])])
        assert batch["label"][i] == label
        right = official.central_square(image, 128)[:, :: -1 if mirrored[-1] else 1] / 127.5 - 1
        off, mirror_image = np.abs(raw["original"][i] - right), np.abs(raw["original"][i] - right[:, ::-1])
        assert off.mean() < 0.02 and off.max() < 0.1 < mirror_image.mean()  # another resampling of smooth images
    assert 0 < sum(mirrored) < 8
    np.testing.assert_allclose(batch["features"], features(raw["original"]), atol=1e-4)


def test_an_image_that_is_missing_is_a_bad_record_and_none_at_all_a_mistake(published, tmp_path):
    root, dino = tmp_path / "imagenet", published("dinov2_tiny")
    official.make(root, per_class=2)
    gone = root / "images" / "train" / "n01484850" / "n01484850_10027.JPEG"
    gone.unlink()
    source = opened(root, dino).source
    with pytest.raises(data.BadRecord, match="missing: no image .*n01484850_10027"):
        source.read(5)
    source.read(4)
    for changes, message in (
        ({"data__images": root}, "data.images is '.*'; it must hold the images of .* has none for n01440764/n01440764"),
        ({"data__images": ""}, "data.images is ''; it must be the folder of the images"),
        ({"codecs__image_encoder": ""}, "codecs.image_encoder is ''; it must name what makes features"),
        ({"data__features_width": 16}, "data.features_width is 16; it must be 32, as"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            opened(root, dino, **changes)
        assert "\n" not in str(error.value)


def test_images_may_have_other_endings(tmp_path):
    root = tmp_path / "imagenet"
    official.make(root, per_class=2)
    for i, path in enumerate(sorted((root / "images").rglob("*.JPEG"))):
        path.rename(path.with_suffix((".jpg", ".png", ".JPG")[i % 3]))
    images = {"images": str(root / "images" / "train")}
    source = data.open_source("latents", str(tmp_path), path=str(root / "latents"), channels=4, **images)
    assert [source[i]["original"].mode for i in range(6)] == ["RGB"] * 6


STEPS = {
    "training.steps": "2", "training.log_every": "1", "training.sample_steps": "1", "sampling.batch_size": "4",
}  # fmt: skip


def train_and_sample(keys, workdir):
    """Trains two steps of the recipe and samples images; returns the last line of metrics.jsonl."""
    with workdirs.one_device():
        train.main([f"--config={CONFIG}", f"--workdir={workdir}", *flags(SMALL | STEPS | keys)])
        out = workdir.parent / f"{workdir.name}_out"
        sample.main([f"--workdir={workdir}", "--steps=2", "--labels=0,2", f"--out={out}"])
    assert list(out.rglob("*.png"))
    return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.nightly
def test_official_latents_train_and_sample(made, published, tmp_path):
    root, _ = made
    keys = of_latents(root, published("dinov2_tiny")) | {"codecs.autoencoder": str(published("autoencoder_kl_tiny"))}
    metrics = train_and_sample(keys, tmp_path / "run")
    assert np.isfinite(metrics["loss"]) and 0 < metrics["alignment"] < 2


@pytest.mark.slow
def test_images_are_encoded_train_and_sample(made, published, tmp_path):
    """The other way: images of all sizes, encoded as they are read, or once, to shards of posteriors and features."""
    root, _ = made
    parts = {
        "codecs.autoencoder": str(published("autoencoder_kl_tiny")),
        "codecs.image_encoder": str(published("dinov2_tiny")),
        "codecs.latents": "sample",
    }
    source = {
        "data.source": "folder", "data.path": str(root / "images" / "train"), "data.encode": "True",
        "data.buckets.table": "((32, 32),)", "data.buckets.max_cropped": "0.99", "data.buckets.enlarge": "True",
    }  # fmt: skip
    keys = SMALL | parts | source | {"loader.directory": str(root / "cache")}
    with workdirs.one_device():
        encode.main([f"--config={CONFIG}", f"--out={tmp_path / 'shards'}", *flags(keys)])
        train.main([f"--config={CONFIG}", f"--workdir={tmp_path / 'direct'}", *flags(keys | STEPS)])
    direct = json.loads((tmp_path / "direct" / "metrics.jsonl").read_text().splitlines()[-1])
    assert np.isfinite(direct["loss"]) and 0 < direct["alignment"] < 2
    del parts["codecs.latents"]
    shards = {"data.source": "shards", "data.path": str(tmp_path / "shards"), "loader.directory": str(root / "cache")}
    metrics = train_and_sample(parts | shards, tmp_path / "run")
    assert np.isfinite(metrics["loss"]) and 0 < metrics["alignment"] < 2
