"""Data joined to training: buckets compiled ahead, bad records that end a run, text and features from shards."""

import json

import jax
import jax.monitoring
import numpy as np
import pytest
from PIL import Image

from tests.helpers.configs import TINY_NETWORK
from tim_jax import data, evaluate, sample, train
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.runs import input_pipeline
from tim_jax.training import sharding

TINY = {
    "data.height": "16", "data.width": "16", "data.buckets.area": "256", "data.buckets.max_buckets": "3",
    "data.buckets.tokens": "256", **TINY_NETWORK, "model.patch_size": "4", "optimizer.warmup_steps": "0",
    "optimizer.decay_steps": "40",
    "training.steps": "6", "training.log_every": "2", "training.sample_every": "0", "training.sample_steps": "1,2",
}  # fmt: skip


def flags(**changes):
    values = TINY | {name.replace("__", "."): str(value) for name, value in changes.items()}
    return [f"--config.{name}={value}" for name, value in values.items()]


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(sharding.jax, "devices", lambda first=jax.devices()[:1]: first)


@pytest.fixture(scope="module")
def cache(data_directory):
    return data_directory


@pytest.fixture
def compiled():
    """Names of what XLA compiles while it is watched, one per program."""
    found = []

    def listen(event, seconds, **more):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(more.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.slow
def test_steps_of_all_buckets_are_compiled_ahead_and_nothing_later(cache, tmp_path, compiled):
    run = build(load_config("photos", TINY | {"loader.directory": str(cache)}))
    found = input_pipeline.open_pipeline(run)
    assert len(found.plan.buckets) == len(found.shapes) == 3
    found = input_pipeline.dataclasses.replace(found, account=data.Account(tmp_path))
    state = run.trainer.create()
    before = len(compiled)
    run.trainer.compile(found.shapes)
    assert compiled[before:].count("jit(train_step)") == 3
    batches, shapes = found.batches(0), set()
    state, seen = run.trainer(state, next(batches)[0]), []
    jax.block_until_ready(state)
    before = len(compiled)
    state = state[0]
    for _ in range(20):
        batch, rows = next(batches)
        assert len(rows) == len(batch["x"])
        shapes.add(batch["x"].shape)
        state, _ = run.trainer(state, batch)
        seen.append(int(state.step))
    assert len(shapes) == 3 and seen[-1] == 21
    assert compiled[before:] == []


@pytest.mark.slow
def test_a_run_over_buckets_goes_on_bit_equal_and_samples_in_any_size(cache, tmp_path, capsys):
    def go(name, *arguments):
        where = [f"--workdir={tmp_path / name}", f"--config.loader.directory={cache}"]
        train.main(["--config=photos", *where, *flags(checkpoint__every=2), *arguments])

    go("whole")
    go("parts", "--config.training.steps=3")
    go("parts")
    assert "2,000 of 2,000 images in 3 buckets" in capsys.readouterr().out
    lines = [metrics(tmp_path / name)[-1] for name in ("whole", "parts")]
    assert lines[0]["step"] == lines[1]["step"] == 6
    timed = ("time", "images_per_second", "model_tflops_per_second", "data_wait", "goodput", "memory/host_peak_gib")
    of_run = [{name: value for name, value in line.items() if not name.startswith(timed)} for line in lines]
    assert of_run[0] == of_run[1]
    assert 0 <= lines[0]["data_wait"] <= 1
    with Image.open(tmp_path / "whole" / "samples" / "samples_00000006.png") as picture:
        assert picture.width > 9 * 16
    sample.main([f"--workdir={tmp_path / 'whole'}", "--steps=1,2", "--size=8x32", "--count=3"])
    (found,) = (tmp_path / "whole" / "sampled").glob("*.npz")
    assert "8x32" in found.name and np.load(found)["steps2"].shape == (3, 8, 32, 3)
    for size in ("8x30", "8", "0x8"):
        with pytest.raises(SystemExit) as stop:
            sample.main([f"--workdir={tmp_path / 'whole'}", f"--size={size}"])
        assert stop.value.code == 2 and f"--size is '{size}'" in capsys.readouterr().err
    evaluate.main([f"--workdir={tmp_path / 'whole'}", "--steps=1", "--seeds=1", "--config.evaluation.num_samples=20"])
    assert json.loads((tmp_path / "whole" / "any_step.json").read_text())["floor"]["frechet"] > 0


@pytest.mark.nightly
def test_too_many_bad_records_end_a_run_with_their_list(tmp_path, capsys):
    rng = np.random.default_rng(0)
    root = tmp_path / "images" / "class"
    root.mkdir(parents=True)
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (16, 16 + 16 * (i % 2), 3), np.uint8)).save(root / f"{i}.png")
    for i in range(12):  # headers are whole, so that only reading the pixels shows it
        path = root / f"{i}.png"
        path.write_bytes(path.read_bytes()[:200])
    where = [f"--workdir={tmp_path / 'run'}", f"--config.loader.directory={tmp_path / 'cache'}"]
    more = flags(
        data__source="folder", data__path=tmp_path / "images", training__steps=40, data__buckets__tokens=0,
        data__batch_size=16, loader__max_bad_share=0.05,
    )  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        train.main(["--config=photos", *where, *more])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2
    for word in ("bad records", "truncated", "loader.max_bad_share", "bad_records"):
        assert word in error, error
    listed = [json.loads(line) for line in (tmp_path / "run" / "bad_records-0.jsonl").read_text().splitlines()]
    assert {line["reason"] for line in listed} == {"truncated"}
    assert {line["identity"] for line in listed} <= {f"class/{i}.png" for i in range(12)}
    assert metrics(tmp_path / "run")[-1]["bad/truncated"] > 0


def shards(folder, text_width, features_width):
    rng = np.random.default_rng(0)

    def rows():
        for i in range(24):
            h, w = ((4, 8), (8, 4), (6, 6))[i % 3]
            yield {
                "latent": rng.standard_normal((2, 4, h, w)).astype(np.float32),
                "captions": ["a thing"],
                "texts": [rng.standard_normal((3, text_width)).astype(np.float32)],
                "features": rng.standard_normal((2, h // 2, w // 2, features_width)).astype(np.float32),
            }

    null = {"text": np.zeros((5, text_width), np.float32), "mask": np.arange(5) < 1}
    data.write_shards(folder, rows(), null=null)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "text_width, named", [pytest.param(12, None, marks=pytest.mark.slow), (10, ["'text'", "(4, 5, 10)", "(4, 5, 12)"])]
)
def test_text_and_alignment_features_ride_along(text_width, named, tmp_path, capsys):
    shards(tmp_path / "shards", text_width, 7)
    more = flags(
        data__source="shards", data__path=tmp_path / "shards", data__height=8, data__width=8, data__channels=4,
        data__buckets__area=36, data__buckets__tokens=0, data__batch_size=4, data__text_width=12, data__text_tokens=5,
        data__features_width=7, model__condition="text", objective__alignment_weight=0.5, model__patch_size=2,
        data__buckets__max_buckets=64, model__projector_width=16,
    )  # fmt: skip
    where = [f"--workdir={tmp_path / 'run'}", f"--config.loader.directory={tmp_path / 'cache'}"]
    if named is None:
        train.main(["--config=photos", *where, *more])
        last = metrics(tmp_path / "run")[-1]
        assert last["step"] == 6 and np.isfinite(last["loss"]) and last["alignment"] != 0
        return
    with pytest.raises(SystemExit) as stop:
        train.main(["--config=photos", *where, *more])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and all(word in error for word in named), error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"model__num_classes": 4}, ["model.num_classes", "4", "at least 10"]),
        ({"model__condition": "text", "data__text_width": 8, "data__text_tokens": 4}, ["photos", "'text'"]),
        ({"data__features_width": 8}, ["photos", "'features'", "data.features_width"]),
        ({"data__channels": 1}, ["data.channels", "1", "3"]),
        (
            {
                "data__buckets__area": 0,
                "data__buckets__tokens": 0,
                "data__buckets__max_buckets": 64,
                "data__height": 512,
            },
            ["data.height", "512", "photos", "--config.data.buckets.enlarge=True"],
        ),
    ],
)
def test_data_that_does_not_fit_is_named_and_nothing_is_touched(changes, named, cache, tmp_path, capsys):
    where = [f"--workdir={tmp_path / 'run'}", f"--config.loader.directory={cache}"]
    with pytest.raises(SystemExit) as stop:
        train.main(["--config=photos", *where, *flags(**changes)])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and all(word in error for word in named), error
    assert not (tmp_path / "run").exists()
