"""Every entry of FEATURES, and DINOv2's against Pillow, loops over PyTorch's formula and the golden network."""

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from tests.evaluation.test_inception import made_up_weights
from tim_jax import codecs
from tim_jax.codecs.dino import MEAN, STD
from tim_jax.evaluation import FEATURES, METRICS, dinov2, metrics


@pytest.fixture(scope="module")
def opened(published, tmp_path_factory):
    """opened(name): the features of that name with random weights."""

    def of(name):
        if name == "inception":
            path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
            safetensors.numpy.save_file(made_up_weights(), path)
            return FEATURES[name](str(path))
        return FEATURES[name](str(published("dinov2_tiny")) if name == "dinov2" else "")

    return of


def levels_of(count=3, size=(20, 17), channels=3):
    return np.random.default_rng(0).integers(0, 256, (count, *size, channels), np.uint8)


def images_of(levels):
    return levels.astype(np.float32) / np.float32(127.5) - 1


# Inception takes long to compile; its own tests compare it with golden numbers.
SLOW = {"inception": pytest.mark.slow}


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in FEATURES])
def test_every_entry(name, opened):
    """Vectors by the names it says, of each image by itself, that some metric can use; its weights have a name."""
    features = opened(name)
    assert features.name == name and features.identity.split()[0] == name and features.preprocessing
    apply, images = jax.jit(features.apply), images_of(levels_of())
    found = apply(features.variables, images)
    assert set(found) == set(features.outputs)
    alone = apply(features.variables, images[::-1])
    for output, x in found.items():
        assert x.shape[0] == 3 and x.ndim == 2 and x.dtype == np.float32
        np.testing.assert_allclose(x, alone[output][::-1], rtol=1e-4, atol=1e-4 * np.abs(x).max())
        assert np.abs(np.diff(np.asarray(x), axis=0)).max() > 0
    assert metrics.chosen(features.outputs)
    if name != "pixels":  # which networks see as they are written
        np.testing.assert_allclose(apply(features.variables, images + np.float32(1e-3))["features"], found["features"])
        grey = jax.jit(features.apply)(features.variables, images[..., :1])["features"]
        assert grey.shape == found["features"].shape


@pytest.mark.parametrize("size", [(20, 17), (32, 32), (224, 224), (190, 300), (512, 512)])
def test_resize_is_pillows(size):
    levels = levels_of(2, size)
    ours = np.asarray(dinov2.resize(levels.astype(np.float32)))
    theirs = np.stack([np.asarray(Image.fromarray(x).resize((224, 224), Image.Resampling.BICUBIC)) for x in levels])
    assert np.abs(ours - theirs).max() <= 1, "of 255 levels"
    assert (ours == theirs).mean() > 0.99


def interpolated(table, side, offset=0.1):
    """PyTorch's bicubic interpolation with scale_factor (side + offset)/n, not antialiased, one place at a time."""
    n, a = len(table), -0.75

    def weight(d):
        d = abs(d)
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0

    found = np.zeros((side, side, table.shape[-1]))
    places = [(i + 0.5) * n / (side + offset) - 0.5 for i in range(side)]
    for i, y in enumerate(places):
        for j, x in enumerate(places):
            for p in range(int(np.floor(y)) - 1, int(np.floor(y)) + 3):
                for q in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
                    value = table[min(max(p, 0), n - 1), min(max(q, 0), n - 1)]
                    found[i, j] += weight(y - p) * weight(x - q) * value
    return found


@pytest.mark.slow
def test_dinov2_is_the_class_token_of_fd_dinov2(published):
    """Images by Pillow, position embeddings by the loops above: of the network itself only the golden part is used."""
    folder, levels = published("dinov2_tiny"), levels_of(2, (40, 30))
    features = FEATURES["dinov2"](str(folder))
    found = jax.jit(features.apply)(features.variables, images_of(levels))
    module, params = codecs.load(folder, codecs.IMAGE_ENCODERS)
    own = module.config.image_size // module.config.patch_size
    side = 224 // module.config.patch_size
    assert own != side, "there is something to interpolate"
    table = params["embeddings.position_embeddings"]
    places = interpolated(table[0, 1:].reshape(own, own, -1), side).reshape(1, side * side, -1)
    whole = module.clone(config=dataclasses.replace(module.config, image_size=224))
    params = params | {"embeddings.position_embeddings": np.concatenate([table[:, :1], places], 1).astype(np.float32)}
    x = np.stack([np.asarray(Image.fromarray(x).resize((224, 224), Image.Resampling.BICUBIC)) for x in levels])
    token = np.asarray(jax.jit(whole.apply)({"params": params}, ((x / 255 - MEAN) / STD).astype(np.float32)))[:, 0]
    np.testing.assert_allclose(found["features"], token, rtol=0, atol=2e-3 * np.abs(token).max())
    embedding = token / np.linalg.norm(token, axis=1, keepdims=True)
    np.testing.assert_allclose(found["embedding"], embedding, rtol=0, atol=2e-3)
    assert features.identity.startswith("dinov2 width ") and len(features.identity.split()[-1]) == 16
    assert set(metrics.chosen(features.outputs)) == {"frechet", "kernel", "mmd", "precision", "recall"}
    assert METRICS["mmd"].output == "embedding", "as CMMD's, of length 1"


def test_dinov2_weights_that_cannot_be_used_are_named(published, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    for path, seen in ((tmp_path / "none", "facebook/dinov2-large"), (tmp_path, "model.safetensors")):
        with pytest.raises(ValueError, match=seen) as error:
            FEATURES["dinov2"](str(path))
        assert "\n" not in str(error.value) and str(error.value).startswith("evaluation.dinov2 is ")
    other = published("dinov2_registers_tiny")
    assert FEATURES["dinov2"](str(other)).identity != FEATURES["dinov2"](str(published("dinov2_tiny"))).identity
