"""What samples are conditioned on: what the data has, as often as it has it."""

import json
import types

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from tests.helpers import workdirs
from tests.helpers.configs import TINY_NETWORK
from tim_jax import data, evaluate, grid, pairs, sample
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.config.identity import completed
from tim_jax.runs import conditions, training
from tim_jax.runs import workdir as of_workdir
from tim_jax.runs.input_pipeline import open_pipeline

CLASSES = {"a": 12, "b": 5, "c": 3}  # class folders, and their images


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, changes) of a workdir whose model has six labels and whose data has three."""
    folder = tmp_path_factory.mktemp("labels")
    rng = np.random.default_rng(0)
    for name, count in CLASSES.items():
        (folder / "images" / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / "images" / name / f"{i}.png")
    changes = TINY_NETWORK | {
        "data.source": "folder", "data.path": str(folder / "images"), "data.buckets.table": "((8, 8),)",
        "data.batch_size": "8", "model.num_classes": "6", "model.patch_size": "4", "evaluation.held_out": "",
        "loader.directory": str(folder / "cache"),
    }  # fmt: skip
    workdirs.workdir(folder / "run", "digits", **changes)
    return folder, changes


@pytest.fixture(autouse=True)
def one_device():
    with workdirs.one_device():
        yield


def exported(folder, *arguments, count=20):
    """The labels of exported samples."""
    path = folder / "samples.npz"
    evaluate.main([f"--workdir={folder / 'run'}", "--steps=1", f"--count={count}", f"--export={path}", *arguments])
    with np.load(path) as samples:
        return samples["arr_1"]


def test_samples_have_the_labels_of_the_data(made, capsys):
    folder, _ = made
    labels = exported(folder)
    assert np.bincount(labels).tolist() == list(CLASSES.values())
    error = capsys.readouterr().err
    assert "model.num_classes is 6; 3 of these labels (3, 4, 5) are not in the data" in error
    np.testing.assert_array_equal(exported(folder, count=7), labels[:7])
    quotas = 7 * np.array(list(CLASSES.values())) / 20
    assert (np.abs(np.bincount(labels[:7], minlength=3) - quotas) < 1).all()
    assert exported(folder, "--config.evaluation.labels=balanced", count=8).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    evaluate.main([f"--workdir={folder / 'run'}", "--steps=1", "--seeds=1", "--nearest=0", f"--out={folder / 'table'}"])
    table = json.loads((folder / "table" / "any_step.json").read_text())
    assert table["protocol"]["labels"] == "data" and table["samples"] == 20
    assert "labels as often as in the data" in (folder / "table" / "any_step.md").read_text()


def test_pictures_while_training_have_them_too(made, monkeypatch):
    _, changes = made
    run, drawn = build(load_config("digits", changes)), []

    class Recorder:
        truths = None

        def load(self):
            pass

        def decode(self, examples):
            return examples

        def __call__(self, weights, labels, **_):
            drawn.append(labels)
            return np.zeros((len(labels), 8, 8, 1))

    monkeypatch.setattr(training, "open_generator", lambda *_: Recorder())
    draw = training.sample_pictures(run, open_pipeline(run))
    draw(types.SimpleNamespace(emas={"slow": None}))
    assert len(drawn) == len(run.training.sample_steps)
    for labels in drawn:
        expected = len(labels) * np.array(list(CLASSES.values())) / sum(CLASSES.values())
        assert len(labels) == training.COLUMNS and np.abs(np.bincount(labels) - expected).max() < 1


@pytest.mark.slow
def test_where_the_data_is_gone_the_workdir_knows(made, tmp_path, capsys):
    folder, changes = made
    gone = changes | {"data.path": str(tmp_path / "gone")}
    workdirs.workdir(tmp_path / "run", "digits", **gone)
    with pytest.raises(SystemExit) as stop:
        exported(tmp_path)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and "evaluation.labels is 'data'; it must be 'balanced'" in error and "gone" in error
    labels = exported(tmp_path, "--config.evaluation.labels=balanced", count=8)
    assert labels.tolist() == [0, 1, 2, 3, 4, 5, 0, 1], "nothing says which the data has"
    assert "every label of the model has its turn" in capsys.readouterr().err

    run = build(load_config("digits", changes))
    conditions.record_labels(run, open_pipeline(run).source, epath.Path(tmp_path / "run"))
    assert "3 of these labels" in capsys.readouterr().err
    assert np.bincount(exported(tmp_path)).tolist() == list(CLASSES.values())
    assert exported(tmp_path, "--config.evaluation.labels=balanced", count=4).tolist() == [0, 1, 2, 0]

    sample.main([f"--workdir={tmp_path / 'run'}", "--steps=1", "--count=7"])
    (arrays,) = (tmp_path / "run" / "sampled").glob("*.npz")
    assert np.load(arrays)["labels"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    sample.main([f"--workdir={tmp_path / 'run'}", "--steps=1", "--labels=5,4", f"--out={tmp_path / 'asked'}"])
    (arrays,) = (tmp_path / "asked").glob("*.npz")
    assert np.load(arrays)["labels"].tolist() == [5, 4], "what is asked for is drawn"
    assert "--labels has 4, which the data does not have" in capsys.readouterr().err
    grid.main([f"--workdir={tmp_path / 'run'}", "--steps=1", "--times=2", "--count=4"])
    pairs.main([f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'pairs'}", "--examples=7", "--steps=1"])

    source = data.open_source("shards", str(tmp_path), path=str(tmp_path / "pairs"), channels=1)
    assert [source.annotations(i)["label"] for i in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_a_run_of_before_is_measured_as_it_was(made):
    folder, _ = made
    older = json.loads((folder / "run" / "config.json").read_text())
    assert older["evaluation"].pop("labels") == "data"
    assert completed(older)["evaluation"]["labels"] == "balanced"
    older["model"]["condition"] = "text"
    assert completed(older)["evaluation"]["labels"] == "data", "which has no effect there"
    assert of_workdir.load(epath.Path(folder / "run")).evaluation.labels == "data"
    build(load_config("imagenet256_xl", {}), jax.devices()[:1])
    assert load_config("released_imagenet512", {}).evaluation.labels == "balanced"
