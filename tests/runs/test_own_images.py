"""configs/own_images.py and own_images_t2i.py: a folder is all that is given, and what is chosen is recorded."""

import json
import re
import types

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from tests.helpers.configs import TINY_NETWORK, flags
from tests.helpers.sources import MADE
from tests.helpers.workdirs import contents, one_device, told
from tim_jax import classify, inspect, train
from tim_jax.config import automatic, identity
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.config.keys import flatten
from tim_jax.runs.counting import counted
from tim_jax.runs.workdir import check_outside_data, record_start, recorded

CLASSES = ("circle", "square", "triangle")
SHORT = {
    **TINY_NETWORK, "training.steps": 1, "training.log_every": 1, "training.sample_every": 0, "data.height": 8,
    "optimizer.warmup_steps": 0, "training.sample_steps": "(1,)",
}  # fmt: skip


def pictures(root, parts=("",), count=20):
    """Images of sizes that no two share, in class folders, with captions."""
    rng = np.random.default_rng(0)
    for part in parts:
        for label in CLASSES:
            (root / part / label).mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 256, (12 + i, 40 - i, 3), np.uint8)
                Image.fromarray(image).save(root / part / label / f"{i}.png")
                (root / part / label / f"{i}.txt").write_text(f"a {label}")
    return root


def resolved(folder, root, name="own_images", devices=1, **keys):
    keys = {"data.path": str(root), "loader.directory": str(folder / "cache")} | keys
    given = load_config(name, {key: str(value) for key, value in keys.items()})
    return build(counted(given), jax.devices()[:devices])


def test_what_is_not_given_is_counted_and_chosen(tmp_path):
    run = resolved(tmp_path, pictures(tmp_path / "shapes"))
    flat = flatten(run.config)
    assert {key: flat[key] for key in automatic.KEYS} == {
        "model.num_classes": 3, "data.held_out_share": 0.05, "data.height": 32, "data.width": 32, "data.batch_size": 32,
    }  # fmt: skip
    assert run.network.num_classes == 3 and run.inputs.shape == (32, 32)


@pytest.mark.parametrize("part", ["val", "validation", "test"])
def test_a_part_of_the_datas_own_is_held_out_instead_of_a_share(part, tmp_path):
    run = resolved(tmp_path, pictures(tmp_path / "shapes", ("train", part), 2))
    assert run.config.data.held_out_share == 0 and run.config.model.num_classes == 3


def test_a_few_images_are_all_trained_on(tmp_path):
    assert resolved(tmp_path, pictures(tmp_path / "shapes", count=1)).config.data.held_out_share == 0


@pytest.mark.parametrize("main, flag", [(train.main, "--workdir"), (inspect.main, "--out")])
def test_pictures_are_not_written_among_the_images(main, flag, tmp_path, capsys, monkeypatch):
    """They would be a class of their own when the folder is read again."""
    root = pictures(tmp_path / "shapes", count=2)
    before = contents(tmp_path)
    cache = f"--config.loader.directory={tmp_path / 'cache'}"
    monkeypatch.chdir(root)
    for given, path in ((".", "."), ("runs/mine", "."), (str(root / "circle" / "new"), str(root))):
        error = told(main, ["--config=own_images", f"--config.data.path={path}", cache, f"{flag}={given}"], capsys)
        assert error.startswith(f"error: {flag} is '{given}'; it must lie outside of data.path, '{path}'")
        mixed = f"--config.data.mixture=(('digits', '', 1), ('folder', '{path}', 1))"
        error = told(main, ["--config=digits", mixed, cache, f"{flag}={given}"], capsys)
        assert error.startswith(f"error: {flag} is '{given}'; it must lie outside of data.path, '{path}'")
    assert contents(tmp_path) == before


def test_a_hidden_folder_and_one_beside_the_images_are_outside(tmp_path):
    root = pictures(tmp_path / "shapes", count=1)
    config = load_config("own_images", {"data.path": str(root)})
    for folder in (root / ".runs" / "a", tmp_path / "run", tmp_path / "shapes2"):
        check_outside_data(epath.Path(folder), "--workdir", config)


@pytest.mark.parametrize("source", ["folder", "latents", "tar", "parquet", "manifest", "preferences", "shards"])
def test_an_image_in_place_of_the_data_is_refused(source, tmp_path, capsys):
    image = pictures(tmp_path / "shapes", count=1) / "circle" / "0.png"
    keys = {"data.source": source, "data.path": image, "loader.directory": tmp_path / "cache"}
    error = told(inspect.main, ["--config=own_images", f"--out={tmp_path / 'out'}", *flags(keys)], capsys)
    assert error.startswith(f"error: data.path is '{image}'; ") and "must be a f" in error, error
    assert not (tmp_path / "out").exists()


def test_images_in_no_class_folder_are_one_class(tmp_path):
    (tmp_path / "shapes").mkdir()
    for path in pictures(tmp_path / "made").rglob("*.png"):
        path.rename(tmp_path / "shapes" / f"{path.parent.name}{path.name}")
    assert resolved(tmp_path, tmp_path / "shapes").config.model.num_classes == 1


def test_one_class_is_nothing_to_tell_apart(tmp_path, capsys):
    for path in pictures(tmp_path / "made", count=3).rglob("*.png"):
        (tmp_path / "shapes").mkdir(exist_ok=True)
        path.rename(tmp_path / "shapes" / f"{path.parent.name}{path.name}")
    keys = {"data.path": tmp_path / "shapes", "loader.directory": tmp_path / "cache"}
    error = told(classify.main, ["--config=own_images", f"--out={tmp_path}/c.safetensors", *flags(keys)], capsys)
    assert error.startswith("error: model.num_classes is 1; it must be at least 2")
    assert not (tmp_path / "c.safetensors").exists()


@pytest.mark.parametrize("source", ["tar", "parquet", "shards", "tfds"])
def test_classes_are_counted_in_every_source_that_has_labels(source, tmp_path):
    made = MADE[source](tmp_path)
    assert resolved(tmp_path, made["path"], **{"data.source": source}).config.model.num_classes == 2


@pytest.mark.parametrize(
    "keys, message",
    [
        ({}, "--config.data.path=PATH"),
        ({"data.path": "nowhere"}, "data.path is 'nowhere'"),
        ({"data.source": "manifest"}, "model.condition is 'class'.*--config=own_images_t2i"),
        ({"data.path": "shapes", "data.hieght": "8"}, "data.height"),
        ({"data.path": "shapes", "data.height": "10"}, "model.patch_size is 4; it must divide data.height, 10"),
        ({"data.path": "shapes", "data.held_out_share": "-2"}, "data.held_out_share is -2.0"),
        ({"data.path": "shapes", "data.batch_size": "-2"}, "data.batch_size is -2"),
        ({"data.path": "shapes", "model.num_classes": "0"}, "model.num_classes is 0"),
    ],
)
def test_a_mistake_is_told_in_the_last_line_and_nothing_is_made(keys, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "shapes", count=2)
    if keys.get("data.source") == "manifest":
        keys = keys | {"data.path": MADE["manifest"](tmp_path)["path"]}
    keys = keys | {"loader.directory": tmp_path / "cache"}
    with one_device(), pytest.raises(SystemExit) as stop:
        train.main(["--config=own_images", "--workdir=run", *flags(keys)])
    *read, error = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and re.search(message, error), error
    assert not read or keys.get("data.source") == "manifest", "what is wrong is told before the data is read"
    assert not (tmp_path / "run").exists()


def device(kind, memory=None):
    stats = {"bytes_limit": memory} if memory else None
    return types.SimpleNamespace(
        platform="cpu" if kind == "cpu" else "gpu", device_kind=kind, memory_stats=lambda: stats
    )


@pytest.mark.parametrize(
    "kind, memory, count, multiple, size",
    [
        ("cpu", None, 1, 1, 32),
        ("cpu", None, 1, 24, 48),
        ("NVIDIA H100 80GB HBM3", None, 1, 1, 256),
        ("NVIDIA H100 80GB HBM3", None, 8, 8, 256),
        ("TPU v5 lite", None, 256, 256, 256),
        ("TPU v5 lite", None, 512, 512, 512),
        ("NVIDIA T4", 2**31, 1, 1, 32),  # 32 MiB of activations for each example
        ("NVIDIA T4", 2**31, 4, 4, 128),
        ("NVIDIA T4", 2**20, 1, 1, 1),
    ],
)
def test_the_batch_fits_the_devices(kind, memory, count, multiple, size):
    sizes = {"model.width": "256", "model.depth": "16", "data.height": "32", "data.width": "32"}
    config = load_config("own_images", sizes)
    assert automatic.batch_size(config, [device(kind, memory)] * count, multiple) == size


def test_what_is_recorded_is_taken_again_on_another_machine(tmp_path, monkeypatch):
    root = pictures(tmp_path / "shapes")
    run = resolved(tmp_path, root)
    record_start(epath.Path(tmp_path / "run"), run.config)
    for name, value in {"SIDE_OF_CPU": 48, "BATCH_OF_CPU": 16}.items():
        monkeypatch.setattr(automatic, name, value)
    before = recorded(epath.Path(tmp_path / "run"))
    keys = {"data.path": str(root), "loader.directory": str(tmp_path / "cache")}
    given = load_config("own_images", keys)
    again = build(automatic.as_recorded(given, before), jax.devices()[:1])
    identity.compare(before, again.config, tmp_path)
    with pytest.raises(ValueError, match="data.batch_size is 16; it must be 32"):
        identity.compare(before, build(counted(given), jax.devices()[:1]).config, tmp_path)
    other = automatic.as_recorded(load_config("own_images", keys | {"data.height": "64"}), before)
    with pytest.raises(ValueError, match="data.height is 64; it must be 32"):
        identity.compare(before, build(other, jax.devices()[:1]).config, tmp_path)


@pytest.mark.nightly
def test_a_run_goes_on_with_what_it_began_with_on_another_machine(tmp_path, monkeypatch, capsys):
    """The same command on a machine that others would be chosen for, and after images have come."""
    root = pictures(tmp_path / "shapes")
    keys = {"data.path": root, "loader.directory": tmp_path / "cache"} | SHORT
    command = ["--config=own_images", f"--workdir={tmp_path / 'run'}"]
    with one_device():
        train.main([*command, *flags(keys)])
        said = capsys.readouterr().out
        began = json.loads((tmp_path / "run" / "config.json").read_text())
        assert "recorded in the workdir: model.num_classes=3" in said and "data.batch_size=32" in said
        assert {key: flatten(began)[key] for key in automatic.KEYS} == {
            "model.num_classes": 3, "data.held_out_share": 0.05, "data.height": 8, "data.width": 8,
            "data.batch_size": 32,
        }  # fmt: skip
        for name, value in {"SIDE_OF_CPU": 48, "BATCH_OF_CPU": 16}.items():
            monkeypatch.setattr(automatic, name, value)
        Image.new("RGB", (50, 90)).save(root / CLASSES[0] / "new.png")
        train.main([*command, *flags(keys | {"training.steps": 2})])
    assert "chosen for" not in capsys.readouterr().out
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 2


def test_text_to_image_takes_its_captions_from_the_folder(tmp_path):
    run = resolved(tmp_path, pictures(tmp_path / "shapes"), "own_images_t2i")
    assert run.network.condition == "text" and run.inputs.captions and run.config.data.batch_size == 32
