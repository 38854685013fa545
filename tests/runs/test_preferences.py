"""Preferences from end to end: pairs that a reward prefers, training on them from the start as reference, refusals."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from tests.helpers.configs import TINY_NETWORK, flags
from tests.helpers.sources import make_preferences
from tests.helpers.workdirs import one_device, told, workdir
from tim_jax import codecs, data, encode, prefer, train
from tim_jax.config import plugins
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.runs import input_pipeline, training
from tim_jax.runs.teachers import with_teachers
from tim_jax.training import warm_start

SMALL = {
    **TINY_NETWORK, "model.patch_size": "4", "data.batch_size": "16", "training.steps": "2", "training.log_every": "1",
    "optimizer.warmup_steps": "0", "ema.slow": "0.5", "sampling.batch_size": "8",
}  # fmt: skip
COUNT = 20


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return workdir(tmp_path_factory.mktemp("start") / "run", "digits_flow_matching", **SMALL)


@pytest.fixture(scope="module")
def made(start, tmp_path_factory):
    """A folder of pairs of the start's samples."""
    out = tmp_path_factory.mktemp("pairs") / "out"
    with one_device():
        prefer.main([f"--workdir={start}", "--reward=brightness", f"--out={out}", f"--pairs={COUNT}", "--steps=2"])
    return out


def tune(start, made, folder, *more, **changes):
    """The command that trains on the pairs."""
    keys = SMALL | {"start.checkpoint": str(start), "data.path": str(made), "loader.directory": str(made / "cache")}
    keys |= {name.replace("__", "."): str(value) for name, value in changes.items()}
    with one_device(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "can_draw", lambda run: False)
        train.main(["--config=preferences/flow_dpo", f"--workdir={folder}", *flags(keys), *more])


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_reward_prefers_the_brighter_of_two_samples_of_a_label(made):
    lines = [json.loads(line) for line in (made / "preferences.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == [i % 10 for i in range(COUNT)]
    for line in lines:
        means = [np.asarray(Image.open(made / name), np.float64).mean() / 127.5 - 1 for name in line["images"]]
        np.testing.assert_allclose(line["rewards"], means, atol=1e-6)
        assert line["choice"] == np.argmax(means) and line["reward"] == max(line["rewards"])
    source = data.open_source("preferences", str(made / "cache"), path=str(made), num_classes=10, channels=1)
    assert len(source) == COUNT and source.preference == ("loser", "reward")
    assert all(np.mean(row["image"]) > np.mean(np.asarray(row["loser"])) for row in map(source.__getitem__, range(9)))
    assert (made / "preferences.png").stat().st_size > 100


def test_two_runs_are_compared_on_the_same_noise(start, made, tmp_path, capsys):
    other = shutil.copytree(start, tmp_path / "other")
    with one_device():
        arguments = [f"--workdir={other}", f"--against={start}", "--reward=brightness", "--pairs=8", "--steps=1"]
        prefer.main([*arguments, f"--out={tmp_path / 'out'}"])
    assert f"{other} is preferred in 0.0% of 8 pairs, 8 ties" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "out" / "preferences.jsonl").read_text().splitlines()]
    assert all(line["choice"] is None for line in lines), "one run's weights are both"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"--reward": "beauty"}, "--reward is 'beauty'; it must be one of brightness"),
        ({"--pairs": "0"}, "--pairs is 0; it must be at least 1"),
        ({"--out": "{made}"}, "it must be a new folder, and holds preferences.jsonl"),
        ({"--out": "{start}"}, "it must be a new folder, and holds checkpoints"),
        ({"--against": "{made}"}, "--against={made}: holds no run"),
        ({"--against": "{start}"}, "it must be another run than --workdir"),
        ({"--against": "{wide}"}, "it must have data.height=8, and has 16"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments, message, start, made, tmp_path, capsys):
    wide = SMALL | {"data.height": "16"}
    places = {"start": start, "made": made, "wide": workdir(tmp_path / "wide", "digits_flow_matching", **wide)}
    given = {"--workdir": "{start}", "--reward": "brightness", "--out": str(tmp_path / "out")} | arguments
    with one_device():
        error = told(prefer.main, [f"{name}={text.format(**places)}" for name, text in given.items()], capsys)
    assert message.format(**places) in error and not (tmp_path / "out").exists()


def test_a_plugin_brings_a_reward_and_one_that_gives_no_numbers_ends_the_command(start, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "from tim_jax.transitions.rewards import REWARDS\n\n"
        "REWARDS['darkness'] = lambda images, condition: condition['label'] - images.mean((1, 2, 3))\n"
        "REWARDS['nothing'] = lambda images, condition: images.mean()\n"
    )
    line = [f"--workdir={start}", "--pairs=3", "--steps=1", f"--config.plugin={tmp_path / 'mine.py'}"]
    try:
        with one_device():
            prefer.main([*line, "--reward=darkness", f"--out={tmp_path / 'out'}"])
            with pytest.raises(SystemExit) as stop:
                prefer.main([*line, "--reward=nothing", f"--out={tmp_path / 'other'}"])
    finally:
        for plugin in plugins.LOADED.values():
            for table, name in plugin.added:
                plugins.TABLES[table].pop(name, None)
        plugins.LOADED.clear()
    assert stop.value.code == 1 and "the reward 'nothing' of 3 images is ()" in capsys.readouterr().err
    first = json.loads((tmp_path / "out" / "preferences.jsonl").read_text().splitlines()[2])
    image = np.asarray(Image.open(tmp_path / "out" / first["images"][0]), np.float64)
    assert first["rewards"][0] == pytest.approx(2 - (image.mean() / 127.5 - 1), abs=1e-6)


@pytest.mark.slow
def test_the_start_is_the_reference_and_is_known_again(start, made, tmp_path, capsys):
    folder, moved = tmp_path / "run", shutil.copytree(start, tmp_path / "moved")
    tune(start, made, folder)
    first, second = metrics_of(folder)
    assert first["loss"] == pytest.approx(np.log(2), rel=1e-6) and first["margin"] == 0, "it is the start itself"
    assert second["loss"] != first["loss"] and 0 <= second["accuracy"] <= 1
    saved = warm_start.find(str(folder), "")
    assert warm_start.record(saved)["teachers"]["teacher"]["path"].startswith(str(start))
    tune(start, made, folder, training__steps=3, teacher__checkpoint=moved)  # a copy elsewhere is the same reference
    assert len(metrics_of(folder)) == 3
    other = workdir(tmp_path / "other", "digits_flow_matching", **SMALL | {"model.depth": "2"})
    capsys.readouterr()
    with pytest.raises(SystemExit):
        tune(start, made, folder, training__steps=4, teacher__checkpoint=other)
    assert f"teacher.checkpoint is {other}/checkpoints/0 (" in (error := capsys.readouterr().err)
    assert f"but {folder}/checkpoints/3 learnt from {moved}/checkpoints/0 (" in error


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data__source": "digits", "data__path": ""}, "digits: its examples have no 'loser', which objective.name"),
        (
            {"data__source": "digits", "data__path": "", "objective__name": "reward_weighted_regression"},
            "digits: its examples have no 'reward', which the objective needs",
        ),
        ({"start__checkpoint": ""}, "teacher.checkpoint is ''; it must be a workdir or one of its checkpoints"),
        ({"start__ema": "fast"}, "start.ema is 'fast'; it must be one of online, slow"),
    ],
)
def test_what_is_missing_is_told_in_a_line(changes, message, start, made, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        tune(start, made, tmp_path / "run", **changes)
    assert stop.value.code == 2 and message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
def test_reward_weighted_regression_trains_on_the_same_pairs(start, made, tmp_path):
    tune(start, made, tmp_path / "run", objective__name="reward_weighted_regression")
    assert all(np.isfinite(line["loss"]) for line in metrics_of(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("latents", ["mean", "sample"])
def test_winner_and_loser_are_encoded_alike(latents, published, tmp_path, capsys):
    vae, where = published("autoencoder_kl_tiny"), make_preferences(tmp_path)
    keys = SMALL | {
        "data.encode": "True", "codecs.autoencoder": str(vae), "codecs.latents": latents, "data.channels": "4",
        "data.source": "preferences", "data.path": where["path"], "loader.directory": str(tmp_path / "cache"),
        "data.height": "8", "data.width": "8", "data.buckets.enlarge": "True", "data.batch_size": "4",
        "objective.name": "flow_dpo", "teacher.checkpoint": "none", "model.num_classes": "2",
    }  # fmt: skip
    run = build(load_config("base", keys), jax.devices()[:1])
    pipeline = dataclasses.replace(input_pipeline.open_pipeline(run), account=data.Account(tmp_path))
    raw, (batch, _) = pipeline.dataset[0], next(pipeline.batches(0))
    assert raw["loser"].shape == raw["x"].shape == (4, 32, 32, 3)
    module, params = codecs.load(vae, codecs.AUTOENCODERS)
    expected = {name: module.apply({"params": params}, raw[name], method="encode") for name in ("x", "loser")}
    for name, mean in expected.items():
        if latents == "mean":
            np.testing.assert_allclose(batch[name], mean, atol=1e-5)
    if latents == "sample":
        noise, other = (np.asarray(batch[name] - mean) for name, mean in expected.items())
        assert np.abs(noise).max() > 1e-3 and abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 0.2
    with one_device():
        error = told(encode.main, ["--config=base", f"--out={tmp_path / 'out'}", *flags(keys)], capsys)
    assert "data.source is 'preferences'; it must be another one, as shards hold no pairs" in error


@pytest.mark.slow
def test_a_mesh_gives_the_numbers_of_one_device(start, made, tmp_path):
    def losses(sizes):
        keys = SMALL | sizes | {"start.checkpoint": str(start), "data.path": str(made)}
        keys |= {"loader.directory": str(tmp_path), "objective.preference.shared_noise": "False"}
        keys |= {"objective.preference.beta": "5.0"}  # margins of order 1, so that differences have all their digits
        run = build(load_config("preferences/flow_dpo", keys), jax.devices()[: 8 if sizes else 1])
        run = with_teachers(run)
        pipeline = dataclasses.replace(input_pipeline.open_pipeline(run), account=data.Account(tmp_path))
        stream, state, found = pipeline.batches(0), run.trainer.create(), []
        for _ in range(3):
            state, metrics = run.trainer(state, next(stream)[0])
            found.append([float(metrics[name]) for name in ("loss", "margin", "grad_norm")])
        return np.array(found)

    mesh = {"mesh.data": "2", "mesh.fsdp": "2", "mesh.sequence": "2"}
    np.testing.assert_allclose(losses(mesh), losses({}), rtol=2e-5, atol=2e-5)
