"""Measurements of a run against data that is stored in an order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image

from tests.helpers.configs import TINY_NETWORK
from tests.helpers.workdirs import one_device
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.evaluation import summaries
from tim_jax.evaluation.features import Features
from tim_jax.runs import measuring

CLASSES, EACH = 20, 10


def certain(_, images):
    """Features of an image, and logits that leave no doubt of its class, which is how bright it is."""
    level = jnp.rint((images.mean(axis=(1, 2, 3)) + 1) * 127.5 / 10).astype(int)
    return {"features": images.reshape(len(images), -1), "logits": 50.0 * jax.nn.one_hot(level, CLASSES)}


def test_the_inception_scores_floor_of_class_folders_is_that_of_all_classes(tmp_path, monkeypatch):
    for label in range(CLASSES):
        folder = tmp_path / "images" / f"class {label:02}"
        folder.mkdir(parents=True)
        for i in range(EACH):
            Image.fromarray(np.full((8, 8), 10 * label, np.uint8)).save(folder / f"{i}.png")
    monkeypatch.setattr(summaries, "SPLIT", 100)
    features = Features("certain", ("features", "logits"), "none", "certain", {}, certain)
    monkeypatch.setattr(measuring, "FEATURES", {"pixels": lambda weights: features})
    changes = TINY_NETWORK | {
        "data.source": "folder", "data.path": str(tmp_path / "images"), "data.buckets.table": "((8, 8),)",
        "data.batch_size": "8", "model.num_classes": str(CLASSES), "evaluation.held_out": "",
        "evaluation.batch_size": "64", "evaluation.metrics": "('inception_score',)",
        "loader.directory": str(tmp_path / "cache"),
    }  # fmt: skip
    with one_device():
        yardstick = measuring.open_measurement(build(load_config("digits", changes))).yardstick
    labels = np.random.default_rng(0).permutation(np.arange(CLASSES * EACH) // EACH).reshape(2, 100)
    expected = np.mean([np.exp(scipy.stats.entropy(np.bincount(part, minlength=CLASSES))) for part in labels])
    assert 18.5 < expected < 20
    assert yardstick.floor([0])["inception_score"] == pytest.approx(expected, rel=0.05), "in order it would be 10"
