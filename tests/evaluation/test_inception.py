"""The Inception network against the published implementation's numbers, and files of weights that cannot be used."""

import zlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from tim_jax.evaluation import FEATURES, inception
from tim_jax.evaluation.features import WEIGHTS


def made_up_weights():
    """Weights of the golden numbers under the published names, PyTorch's layouts: see the rules in tests/golden."""
    arrays = {}
    for name, shape in inception.shapes().items():
        x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
        if name.endswith("conv.weight") or name == "fc.weight":
            arrays[name] = x * np.sqrt(2 / np.prod(shape[1:]), dtype=np.float32)
        elif name.endswith("bn.weight"):
            arrays[name] = 1 + 0.1 * x
        elif name.endswith("running_var"):
            arrays[name] = 1 + 0.1 * np.abs(x)
        else:
            arrays[name] = 0.1 * x
    return arrays


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    safetensors.numpy.save_file(made_up_weights(), path)
    return path


def same(found, published):
    np.testing.assert_allclose(found, published, rtol=1e-4, atol=1e-5 * np.abs(published).max())


@pytest.mark.slow
def test_features_equal_the_published_ones(weights, golden):
    """All golden features, on images of 64 × 80 pixels; the bound is 1e-3, and they agree to 1e-5."""
    arrays = golden("inception_v3.npz")
    levels = np.moveaxis(arrays["images_uint8_nchw"], 1, -1)

    def apply(variables, levels):
        return inception.Inception().apply(variables, levels, capture_intermediates=True, mutable=["intermediates"])

    outputs, found = jax.jit(apply)(FEATURES["inception"](str(weights)).variables, levels)
    widths = {"features": 2048, "spatial": 2023, "logits": 1008}
    assert {name: x.shape for name, x in outputs.items()} == {name: (4, width) for name, width in widths.items()}
    same(outputs["features"], arrays["feature_2048"])
    same(outputs["logits"], arrays["feature_logits_unbiased"])
    found = found["intermediates"]
    layers = {name: layer["__call__"][0] for name, layer in found.items() if name != "__call__"}
    averages = {
        "feature_64": inception.halved(layers["Conv2d_2b_3x3"]).mean((1, 2)),
        "feature_192": inception.halved(layers["Conv2d_4a_3x3"]).mean((1, 2)),
        "feature_768": layers["Mixed_6e"].mean((1, 2)),
    }
    for name, value in averages.items():
        same(value, arrays[name])
    # sFID's features: the ReLU of the 1x1 branch of Mixed_6d, which comes first in its output.
    branch = found["Mixed_6d"]["branch1x1"]["__call__"][0]
    assert branch.shape == (4, 17, 17, 192)
    np.testing.assert_allclose(outputs["spatial"], branch[..., :7].reshape(4, -1), rtol=1e-4, atol=1e-4)


def test_the_network_sees_eight_bits_and_three_channels(weights, golden, monkeypatch):
    class Seen:
        def apply(self, variables, levels):
            return {"features": levels, "spatial": levels, "logits": levels}

    plug = FEATURES["inception"](str(weights))
    monkeypatch.setattr(inception, "Inception", Seen)
    levels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    seen = plug.apply(plug.variables, levels.astype(np.float32) / np.float32(127.5) - 1)
    assert set(seen) == set(plug.outputs)
    np.testing.assert_array_equal(seen["features"], np.repeat(levels, 3, axis=-1))
    beyond = np.array([-3, -1.001, 0.0039, 1.001, 3], np.float32).reshape(1, 1, 5, 1)
    assert np.asarray(plug.apply(plug.variables, beyond)["features"])[0, 0, :, 2].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("size", [(8, 8), (64, 80), (299, 299), (512, 400)])
def test_resize_is_tensorflows(size):
    """Place i lies at i · size/299, between the two places around it; the last place has no neighbour."""
    images = np.random.default_rng(0).uniform(0, 255, (1, *size, 2)).astype(np.float32)
    resized = np.asarray(inception.resize(images))
    assert resized.shape == (1, 299, 299, 2)
    for i, j in ((0, 0), (298, 298), (17, 230), (298, 3), (150, 150)):
        y, x = i * size[0] / 299, j * size[1] / 299
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, size[0] - 1), min(x0 + 1, size[1] - 1)
        above = images[0, y0, x0] * (1 - x + x0) + images[0, y0, x1] * (x - x0)
        below = images[0, y1, x0] * (1 - x + x0) + images[0, y1, x1] * (x - x0)
        np.testing.assert_allclose(resized[0, i, j], above * (1 - y + y0) + below * (y - y0), atol=2e-2)


def refused(path):
    with pytest.raises(ValueError) as error:
        FEATURES["inception"](str(path))
    assert "\n" not in str(error.value) and "evaluation.inception" in str(error.value)
    return str(error.value)


def test_weights_that_cannot_be_used_are_named(weights, golden, tmp_path):
    missing = refused(tmp_path / "none.pth")
    assert WEIGHTS in missing and str(tmp_path / "none.pth") in missing
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:-1000])
    assert "is truncated or no safetensors file" in refused(tmp_path / "cut.safetensors")
    (tmp_path / "weights.txt").write_text("x")
    assert ".safetensors" in refused(tmp_path / "weights.txt")
    arrays = dict(golden("loss.npz"))
    np.savez(tmp_path / "other.npz", **arrays)
    assert "not the Inception network of FID" in refused(tmp_path / "other.npz")
    shapes = {name: np.broadcast_to(np.float32(0), shape) for name, shape in inception.shapes().items()}
    for change, said in (
        ({"fc.weight": np.zeros((1000, 2048))}, "fc.weight is (1000, 2048), must be (1008, 2048)"),
        ({"AuxLogits.fc.weight": np.zeros(3)}, "AuxLogits.fc.weight is not known"),
    ):
        with pytest.raises(ValueError, match="not the Inception") as error:
            inception.from_published(shapes | change)
        assert said in str(error.value)
    del shapes["Mixed_7c.branch_pool.conv.weight"]
    with pytest.raises(ValueError, match="Mixed_7c.branch_pool.conv.weight is missing"):
        inception.from_published(shapes)
