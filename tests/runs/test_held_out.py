"""What a run is compared with: its own part and one that is held out, whatever source its data is; labels on resume."""

import json
import shutil

import jax
import numpy as np
import pytest
from absl import logging
from etils import epath
from PIL import Image

from tests.helpers.configs import TINY_NETWORK, flags
from tests.helpers.workdirs import one_device, workdir
from tim_jax import diagnose, train
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.config.identity import completed
from tim_jax.evaluation import references
from tim_jax.evaluation.yardstick import HELD_OUT
from tim_jax.runs import input_pipeline, measuring
from tim_jax.runs.start import check_classes
from tim_jax.runs.workdir import CLASSES, record_start

TINY = {
    **TINY_NETWORK, "model.patch_size": "4", "model.num_classes": "5", "data.source": "folder", "data.height": "8",
    "data.width": "8", "data.channels": "3", "data.batch_size": "4", "data.buckets.table": "((8, 8),)",
    "training.steps": "2", "training.sample_every": "0", "training.sample_steps": "(1,)", "training.log_every": "1",
    "optimizer.warmup_steps": "0", "sampling.ema": "online",
}  # fmt: skip


@pytest.fixture
def pictures(tmp_path):
    """Keys of a configuration of 30 images of their own grey in three class folders."""
    for i in range(30):
        path = tmp_path / "images" / ("ant", "bee", "cat")[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 8 * i, np.uint8)).save(path)
    return TINY | {"data.path": str(tmp_path / "images"), "loader.directory": str(tmp_path / "cache")}


def run_of(keys, **more):
    return build(load_config("base", keys | {key.replace("__", "."): value for key, value in more.items()}),
                 jax.devices()[:1])  # fmt: skip


def refused(command, arguments, capsys):
    """The last line that a command says, which refuses."""
    with one_device(), pytest.raises(SystemExit) as stop:
        command.main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def greys(images):
    """The grey of each image, which tells it from the others."""
    found, whole = images.read(np.arange(images.count))
    assert whole.all()
    return {int(round((image.max() + 1) * 127.5)) // 8 for image in found}


def test_what_is_held_out_is_not_trained_on(pictures):
    run = run_of(pictures, data__held_out_share="0.3")
    measured = measuring.open_measurement(run)
    trained, held_out = greys(measured.image_sets[""]), greys(measured.image_sets[HELD_OUT])
    assert not trained & held_out and trained | held_out == set(range(30)) and len(held_out) > 3
    pipeline = input_pipeline.open_pipeline(run)
    seen = {int(round((x.max() + 1) * 127.5)) // 8 for step in range(20) for x in pipeline.dataset[step]["x"]}
    assert seen == trained
    # The names of stored references tell the part, the share and the data apart.
    other = measuring.open_measurement(run_of(pictures, data__held_out_share="0.4"))
    names = {references.name_of(images.fingerprint) for m in (measured, other) for images in m.image_sets.values()}
    assert len(names) == 4


def test_where_nothing_is_held_out_that_is_said_and_samples_are_compared_all_the_same(pictures, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
    measured = measuring.open_measurement(run_of(pictures))
    assert measured.image_sets.keys() == {""} and greys(measured.image_sets[""]) == set(range(30))
    assert said == ["evaluation.held_out is 'auto': samples are compared with what is trained on alone"]


@pytest.mark.parametrize("keys, message", [
    ({"evaluation__held_out": "held_out"}, "evaluation.held_out is 'held_out'; it must be one of train, "),
    ({"evaluation__held_out": "train"}, "evaluation.held_out is 'train'; it must be another part than data.split"),
    ({"evaluation__held_out": "test", "data__held_out_share": "0.3"},
     "evaluation.held_out is 'test'; it must be one of train, held_out"),
])  # fmt: skip
def test_a_part_that_is_trained_on_or_not_there_is_refused(keys, message, pictures):
    with pytest.raises(ValueError, match=message) as error:
        measuring.open_measurement(run_of(pictures, **keys))
    assert "\n" not in str(error.value)


def test_training_on_what_is_held_out_takes_nothing_else_for_held_out(pictures):
    measured = measuring.open_measurement(run_of(pictures, data__held_out_share="0.3", data__split="held_out"))
    assert measured.image_sets.keys() == {""} and len(greys(measured.image_sets[""])) < 15


def test_the_part_is_found_by_the_names_of_folders(pictures, tmp_path):
    shutil.copytree(tmp_path / "images", tmp_path / "whole" / "train")
    shutil.copytree(tmp_path / "images", tmp_path / "whole" / "val")
    for split, keep in (("train", range(20)), ("val", range(20, 30))):
        for path in (tmp_path / "whole" / split).glob("*/*.png"):
            if int(path.stem) not in keep:
                path.unlink()
    measured = measuring.open_measurement(run_of(pictures, data__path=str(tmp_path / "whole")))
    assert greys(measured.image_sets[""]) == set(range(20)) and greys(measured.image_sets[HELD_OUT]) == {*range(20, 30)}


def test_the_arrays_that_diagnose_reads_are_held_out(pictures, tmp_path, capsys):
    run = run_of(pictures, data__held_out_share="0.3")
    x, labels = input_pipeline.held_out_arrays(run, epath.Path(tmp_path / "none"))
    found = {int(round((image.max() + 1) * 127.5)) // 8: label for image, label in zip(x, labels.tolist(), strict=True)}
    assert found.keys() == greys(measuring.open_measurement(run).image_sets[HELD_OUT])
    assert all(label == grey % 3 for grey, label in found.items())
    folder = workdir(tmp_path / "run", "base", **pictures)
    error = refused(diagnose, [f"--workdir={folder}"], capsys)
    assert error.startswith(
        "error: evaluation.held_out is 'auto'; it must name a part of the data, as none is held out"
    )


def test_configurations_of_before_keep_their_meaning():
    """The default was a name that most sources did not have, and took all for it."""
    old = {"data": {"split": "train"}, "evaluation": {"held_out": "held_out"}}
    assert completed(old)["evaluation"]["held_out"] == "auto" and completed(old)["data"]["held_out_share"] == 0
    for held_out in ("", "test", "auto"):
        assert completed({"evaluation": {"held_out": held_out}})["evaluation"]["held_out"] == held_out
    new = {"data": {"held_out_share": 0.1}, "evaluation": {"held_out": "held_out"}}
    assert completed(new)["evaluation"]["held_out"] == "held_out"


@pytest.fixture
def begun(pictures, tmp_path):
    """A run's arguments, and its workdir, as it is when a run has been started."""
    folder = workdir(tmp_path / "run", "base", **pictures)
    record_start(epath.Path(folder), load_config("base", pictures), classes=("ant", "bee", "cat"))
    return ["--config=base", f"--workdir={folder}", *flags(pictures)], folder


@pytest.mark.slow
@pytest.mark.parametrize("changes, said", [
    ({"ant": "art"}, "'art' is new and 'ant' is gone"),
    ({"cat": "../cat"}, "'cat' is gone"),
    ({"../new": "bat"}, "'bat' is new"),
    ({"ant": "bet", "bee": "bit", "cat": "bot"}, "'bet', 'bit', 'bot' are new and 'ant', 'bee', 'cat' are gone"),
])  # fmt: skip
def test_labels_may_not_change_their_meaning_in_mid_run(changes, said, begun, tmp_path, capsys):
    arguments, folder = begun
    shutil.copytree(tmp_path / "images" / "cat", tmp_path / "new")
    for before, after in changes.items():
        (tmp_path / "images" / before).rename(tmp_path / "images" / after)
    elsewhere = [f"--workdir={tmp_path / 'other'}", f"--config.checkpoint.resume={folder}"]
    for keys in (arguments, [arguments[0], *elsewhere, *arguments[2:]]):
        error = refused(train, keys, capsys)
        assert error.startswith(f"error: data.path is '{tmp_path / 'images'}'; it must have the classes that {folder} ")
        assert error.endswith(f": {said}")
    assert not (tmp_path / "other").exists()


def test_what_is_no_class_changes_no_label(begun, tmp_path):
    for name in ("__MACOSX", "lost+found", "aaa", ".cache"):
        (tmp_path / "images" / name).mkdir()
    run = run_of(dict(argument.removeprefix("--config.").split("=", 1) for argument in begun[0][2:]))
    check_classes(run, epath.Path(begun[1]), input_pipeline.open_source_and_plan(run)[0])


@pytest.mark.slow
def test_training_records_and_shows_the_names_of_labels_and_goes_on_with_them(pictures, tmp_path, capsys):
    folder = tmp_path / "run"
    arguments = ["--config=base", f"--workdir={folder}", *flags(pictures)]
    with one_device():
        train.main(arguments)
        assert json.loads((folder / CLASSES).read_text()) == ["ant", "bee", "cat"]
        assert "labels: 0 ant, 1 bee, 2 cat" in capsys.readouterr().out
        (tmp_path / "images" / "__MACOSX").mkdir()
        train.main([*arguments, "--config.training.steps=3"])
        assert "trained to step 3" in capsys.readouterr().out
    (tmp_path / "images" / "ant").rename(tmp_path / "images" / "bat")
    before = sorted(folder.rglob("*"))
    assert "'bat' is new" in refused(train, [*arguments, "--config.training.steps=4"], capsys)
    assert sorted(folder.rglob("*")) == before


def test_sources_of_a_mixture_must_call_their_labels_alike(pictures, tmp_path):
    other = tmp_path / "other" / "images"
    shutil.copytree(tmp_path / "images", other)
    mixture = {"data__mixture": f"(('folder', {pictures['data.path']!r}, 1.0), ('folder', {str(other)!r}, 1.0))"}
    keys = {key: value for key, value in pictures.items() if key not in ("data.source", "data.path")}
    source, _ = input_pipeline.open_source_and_plan(run_of(keys, **mixture))
    assert source.class_names == ("ant", "bee", "cat")
    (other / "bee").rename(other / "wasp")  # ant, cat, wasp
    with pytest.raises(ValueError, match="data.mixture is .*; they must have the same classes, and label 1 is called"):
        input_pipeline.open_source_and_plan(run_of(keys, **mixture))
