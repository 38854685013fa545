"""Rows that are encoded as they are read: what pretrained modules make of images and captions, and training on it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.configs import TINY_NETWORK
from tests.helpers.workdirs import one_device
from tim_jax import codecs, data, evaluate, train
from tim_jax.codecs import stand_in
from tim_jax.codecs.tokenizer import BYTES
from tim_jax.config import build as configuration
from tim_jax.config.command_line import load_config
from tim_jax.runs import encoders, input_pipeline, measuring
from tim_jax.runs.encoders.module import open_module

TINY = {
    "data.height": "16", "data.width": "16", "data.buckets.area": "256", "data.buckets.max_buckets": "3",
    "data.buckets.tokens": "256", "data.flip": "0.0", **TINY_NETWORK, "model.patch_size": "4",
    "optimizer.warmup_steps": "0", "optimizer.decay_steps": "40", "training.steps": "2",
    "training.log_every": "1", "training.sample_every": "0", "training.sample_steps": "1",
}  # fmt: skip
ONE_SHAPE = {
    "data.height": "8", "data.width": "8", "data.buckets.table": "((8, 8),)", "data.buckets.area": "0",
    "data.buckets.max_buckets": "64", "data.buckets.tokens": "16",
}  # fmt: skip


@pytest.fixture(scope="module")
def cache(data_directory):
    return data_directory


@pytest.fixture
def build(cache):
    def make(name="photos_t2i", devices=1, **changes):
        values = TINY | {"loader.directory": str(cache)}
        values |= {key.replace("__", "."): str(value) for key, value in changes.items()}
        return configuration.build(load_config(name, values), jax.devices()[:devices])

    return make


def read(run, folder):
    """(the first batch of images, as it is read; the same, encoded)."""
    found = dataclasses.replace(input_pipeline.open_pipeline(run), account=data.Account(folder))
    batch, _ = next(found.batches(0))
    return found.dataset[0], batch


@pytest.mark.nightly
@pytest.mark.parametrize("memory", [0, 3])
def test_captions_become_features_of_their_own_tokens(build, tmp_path, memory):
    raw, batch = read(build(codecs__text_memory=memory), tmp_path)
    module, params = stand_in.load()
    ids, mask = BYTES(raw["caption"].tolist(), 72)
    with jax.default_matmul_precision("highest"):
        text = module.apply({"params": params}, ids, mask).last
    np.testing.assert_allclose(batch["text"], text, atol=1e-4)
    np.testing.assert_array_equal(batch["mask"], mask)
    np.testing.assert_array_equal(batch["x"], raw["x"])
    none = module.apply({"params": params}, *BYTES([""], 72)).last
    np.testing.assert_allclose(batch["null_text"], none, atol=1e-4)
    assert batch["null_mask"].sum() == 1
    # Captions that differ have features that differ, also far from where they do.
    one, other = module.apply({"params": params}, *BYTES(["a cat, a photograph", "a dog, a photograph"], 24)).last
    assert np.abs(one - other)[BYTES.count("a cat, a photograph") - 1].max() > 0.1


def test_captions_are_encoded_once_where_they_are_kept(build):
    """Whatever is beside them, and whether they fill all columns; of those not asked for lately again."""
    kept, anew = (encoders.open_text_encoder(build(codecs__text_memory=memory)) for memory in (2, 0))
    encoded, encode = [], kept.memory.encode
    kept.memory.encode = lambda texts: encoded.append(dict.fromkeys(texts)) or encode(texts)
    batches = ["a cat", "a dog", "a cat"], ["a dog", "x" * 71], ["x" * 200, "", "a dog"], ["a dog", ""], ["a cat"]
    for texts in batches:
        found = kept(texts)
        for name, value in anew(texts).items():
            np.testing.assert_allclose(found[name], value, atol=1e-5)
    assert [list(texts) for texts in encoded] == [["a cat", "a dog"], ["x" * 71], ["x" * 200, ""], ["a cat"]]
    for name, value in anew.null.items():
        np.testing.assert_allclose(kept.null[name], value, atol=1e-5)


@pytest.mark.slow
def test_images_become_latents_and_features_of_their_tokens(build, published, tmp_path):
    vae, dino = published("autoencoder_kl_tiny"), published("dinov2_tiny")
    run = build(
        codecs__autoencoder=vae, codecs__image_encoder=dino, data__channels=4, data__features_width=32,
        model__patch_size=2, data__buckets__tokens=64, objective__alignment_weight=1.0,
    )  # fmt: skip
    assert run.inputs.factor == 4 and run.inputs.shape == (64, 64)
    raw, batch = read(run, tmp_path)
    n, height, width, _ = raw["x"].shape
    assert batch["x"].shape == (n, height // 4, width // 4, 4)
    module, params = codecs.load(vae, codecs.AUTOENCODERS)
    latents = module.apply({"params": params}, raw["x"], method="encode")
    np.testing.assert_allclose(batch["x"], latents, atol=1e-5)
    module, params = codecs.load(dino, codecs.IMAGE_ENCODERS)
    features = module.apply({"params": params}, raw["x"], (height // 8, width // 8), method="features")
    np.testing.assert_allclose(batch["features"], features, atol=1e-4)
    state, metrics = run.trainer(run.trainer.create(), batch)
    assert np.isfinite(metrics["loss"])


@pytest.mark.nightly
def test_samples_of_latents_have_their_moments_and_depend_on_seed_step_and_row_alone(build, published):
    changes = dict(codecs__autoencoder=published("autoencoder_kl_tiny"), data__channels=4, codecs__latents="sample")
    run = build(**changes, data__buckets__tokens=4096)
    encoder = encoders.BatchEncoder(run)
    images = np.broadcast_to(np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)), (256, 64, 64, 3))
    batch = {"x": images.astype(np.float32), "caption": np.array(["a cat"] * 256)}
    first, again, later = (np.asarray(encoder(batch, step)["x"]) for step in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - later).max() > 0.01 and np.abs(first[0] - first[1]).max() > 0.01
    module, params = codecs.load(run.codecs.autoencoder, codecs.AUTOENCODERS)
    mean, logvar = module.apply({"params": params}, batch["x"][:1], method="moments")
    scale, std = module.config.scaling_factor, np.exp(0.5 * logvar[0])
    z = (np.concatenate([first, later]) / scale - np.asarray(mean)) / np.asarray(std)[None]
    assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01
    on_eight = encoders.BatchEncoder(build(devices=8, **changes, data__buckets__tokens=4096))
    np.testing.assert_allclose(on_eight(batch, 3)["x"], first, atol=1e-5)


@pytest.mark.slow
def test_tiles_are_used_where_they_are_asked_for(build, published):
    run = build(codecs__autoencoder=published("autoencoder_kl_tiny"), data__channels=4, codecs__tile=32)
    whole = dataclasses.replace(run, codecs=dataclasses.replace(run.codecs, tile=0))
    rows = np.random.default_rng(0).standard_normal((1, 16, 16, 4)).astype(np.float32)
    tiled, at_once = (encoders.open_decoder(of)(rows) for of in (run, whole))
    assert tiled.shape == at_once.shape == (1, 64, 64, 3)
    assert 0 < np.abs(tiled - at_once).max()
    small = rows[:, :8, :8]
    np.testing.assert_allclose(encoders.open_decoder(run)(small), encoders.open_decoder(whole)(small), atol=1e-5)


@pytest.mark.nightly
def test_eight_devices_train_on_what_one_does(build, tmp_path):
    of = {}
    for devices in (1, 8):
        run = build(
            devices=devices, data__buckets__table="((16, 16),)", data__buckets__area=0, data__buckets__max_buckets=64
        )
        _, batch = read(run, tmp_path)
        assert len(batch["x"].sharding.device_set) == devices
        of[devices] = run.trainer(run.trainer.create(), batch)[1]
    np.testing.assert_allclose(of[1]["loss"], of[8]["loss"], rtol=1e-5)


WRONG = {
    "no text encoder": (dict(codecs__text_encoder=""), "codecs.text_encoder is ''; it must name one for data.encode"),
    "another width": (dict(data__text_width=95), "data.text_width is 95; it must be 96, as stand-in (codecs"),
    "fewer positions": (
        dict(codecs__text_encoder="BERT", data__text_width=32, data__text_tokens=25),
        "data.text_tokens is 25; it must be at most 24, as ",
    ),
    "negative memory": (dict(codecs__text_memory=-1), "codecs.text_memory is -1; it must be at least 0"),
    "no image encoder": (dict(data__features_width=8), "codecs.image_encoder is ''; it must name one for data.encode"),
    "no such states": (dict(codecs__text_states="first"), "codecs.text_states is 'first'; it must be one of last, "),
    "no such folder": (dict(codecs__autoencoder="/nowhere"), "/nowhere: is neither a folder nor a file"),
    "negative tile": (dict(codecs__tile=-4, codecs__autoencoder="KL"), "codecs.tile is -4; it must be at least 0"),
    "tile too small": (dict(codecs__tile=8, codecs__autoencoder="KL"), "codecs.tile is 8; it must be a multiple of 16"),
    "no variance": (
        dict(codecs__latents="sample", codecs__autoencoder="DC"),
        "codecs.latents is 'sample'; it must be 'mean', since the autoencoder",
    ),
    "channels": (dict(codecs__autoencoder="KL"), "data.channels is 3; it must be 4, as the latents of"),
    "latents of pixels": (
        dict(codecs__latents="sample"),
        "codecs.latents is 'sample'; it must be 'mean', since it has no effect",
    ),
    "encoder of labels": (
        dict(data__encode=False, model__condition="class", data__text_width=0, data__text_tokens=0),
        "codecs.text_encoder is 'stand-in'; it must be '', since it has no effect where model.condition is not 'text'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_one_line(name, build, published):
    changes, said = WRONG[name]
    models = {"KL": "autoencoder_kl_tiny", "DC": "autoencoder_dc_tiny", "BERT": "bert_tiny"}
    changes = {key: published(models[value]) if value in models else value for key, value in changes.items()}
    with pytest.raises(ValueError) as error:
        input_pipeline.open_pipeline(build(**changes))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_latents_are_not_encoded_again(build, tmp_path):
    row = {"latent": np.zeros((2, 3, 16, 16), np.float32)}
    data.write_shards(tmp_path / "shards", [row] * 4)
    run = build(data__source="shards", data__path=tmp_path / "shards")
    with pytest.raises(ValueError, match="data.encode is True; it must be False, as the examples of shards"):
        input_pipeline.open_pipeline(run)


def test_float32_is_what_the_network_gets(build, tmp_path):
    _, batch = read(build(codecs__dtype="bfloat16"), tmp_path)
    assert batch["text"].dtype == jnp.float32


def trained(cache, folder, **changes):
    """Makes the folder a workdir of a run of two steps."""
    values = TINY | {"loader.directory": str(cache)} | ONE_SHAPE
    values |= {name.replace("__", "."): str(value) for name, value in changes.items()}
    train.main(["--config=photos_t2i", f"--workdir={folder}", *(f"--config.{k}={v}" for k, v in values.items())])
    return folder


def test_a_stand_in_says_that_it_knows_nothing_of_language(build, caplog):
    open_module.cache_clear()  # which another test may have opened
    encoders.open_text_encoder(build()).load()
    assert "stand-in with random weights" in caplog.text


@pytest.mark.slow
def test_training_draws_pictures_of_its_captions_and_samples_for_them_are_measured(cache, tmp_path):
    with one_device():
        folder = trained(cache, tmp_path, evaluation__num_samples=12)
        assert (folder / "samples" / "samples_00000002.png").exists()
        evaluate.main([f"--workdir={folder}", "--steps=1,2", "--seeds=1", "--nearest=4"])
    table = json.loads((folder / "any_step.json").read_text())
    assert [row["steps"] for row in table["rows"]] == [1, 2] and table["rows"][0]["frechet"] > 0
    assert (folder / "nearest.png").exists() and (folder / "any_step_samples.png").exists()


@pytest.mark.nightly
def test_samples_are_measured_as_the_images_they_become(cache, published, tmp_path, monkeypatch):
    monkeypatch.setattr(configuration.sharding.jax, "devices", lambda first=jax.devices()[:1]: first)
    vae = published("autoencoder_kl_tiny")
    changes = dict(codecs__autoencoder=vae, data__channels=4, model__patch_size=2, evaluation__num_samples=8)
    folder = trained(cache, tmp_path / "run", **changes)
    assert (folder / "samples" / "samples_00000002.png").exists()
    evaluate.main([f"--workdir={folder}", "--steps=1", "--count=8", f"--export={tmp_path / 'samples.npz'}"])
    with np.load(tmp_path / "samples.npz") as exported:
        assert exported["arr_0"].shape == (8, 32, 32, 3)
    evaluate.main(
        [f"--workdir={folder}", "--steps=1", "--seeds=1", "--nearest=0", f"--config.codecs.autoencoder={vae}"]
    )
    assert json.loads((folder / "any_step.json").read_text())["rows"][0]["frechet"] > 0
    # The same with stored latents: real images must come from elsewhere.
    shards = tmp_path / "shards"
    data.write_shards(shards, [{"latent": np.zeros((2, 4, 8, 8), np.float32), "label": 0}] * 8, num_classes=10)
    values = TINY | ONE_SHAPE | {"data.channels": "4", "data.source": "shards", "data.path": str(shards)}
    values |= {"codecs.autoencoder": str(vae), "model.patch_size": "2"}
    run = configuration.build(load_config("photos", values | {"evaluation.held_out": ""}), jax.devices()[:1])
    with pytest.raises(ValueError, match="evaluation.reference is ''; it must be a reference batch of images"):
        measuring.open_measurement(run)
    reference = {"evaluation.held_out": "", "evaluation.reference": str(tmp_path / "samples.npz")}
    run = configuration.build(load_config("photos", values | reference), jax.devices()[:1])
    assert measuring.open_measurement(run).image_sets[""].count == 8
