"""The classifier of a reward: trained by its command, read from its file, on meshes, and when a run goes on."""

import re

import jax
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

from tests.helpers.classifiers import classifier_file
from tests.helpers.configs import TINY_NETWORK, flags
from tests.helpers.workdirs import one_device, told
from tim_jax import classify, train
from tim_jax.config.batches import made_up_batch
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.runs import rewards
from tim_jax.runs.teachers import with_teachers
from tim_jax.system import files
from tim_jax.training import sharding

SMALL = TINY_NETWORK | {
    "model.patch_size": "4", "data.batch_size": "16", "training.steps": "2", "training.log_every": "1",
    "training.sample_every": "0", "optimizer.warmup_steps": "0", "objective.reward.weight": "0.5",
}  # fmt: skip


def make_run(path, devices=1, name="classifier", **changes):
    given = SMALL | {"objective.reward.name": name, "objective.reward.classifier": str(path)}
    changes = {key.replace("__", "."): str(value) for key, value in changes.items()}
    return build(load_config("digits", given | changes), jax.local_devices()[:devices])


def steps(run, count=2):
    state, history = run.trainer.create(), []
    for seed in range(count):
        batch = made_up_batch(run.config, 16)
        batch["x"] = np.random.default_rng(seed).uniform(-1, 1, batch["x"].shape).astype(np.float32)
        state, metrics = run.trainer(state, sharding.put_batch(run.mesh, batch))
        history.append({key: float(value) for key, value in metrics.items()})
    return jax.device_get(state.params), history


@pytest.mark.slow
def test_eight_devices_equal_one(tmp_path):
    path = classifier_file(tmp_path)
    one, eight = (
        with_teachers(make_run(path, 1)), with_teachers(make_run(path, 8, mesh__data=2, mesh__fsdp=4))
    )  # fmt: skip
    (params, history), (on_mesh, there) = steps(one), steps(eight)
    for here, other in zip(history, there, strict=True):
        assert here["reward"] < -1 and here == pytest.approx(other, rel=1e-4, abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), params, on_mesh)
    frozen = jax.tree.leaves(eight.trainer.frozen_params["classifier"])
    assert all(leaf.sharding.is_fully_replicated for leaf in frozen)
    program = one.trainer.trace(one_batch(one)).jaxpr
    assert not any(np.size(const) > 10 and np.shape(const) == frozen[0].shape for const in program.consts)


def one_batch(run):
    return {
        name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding.batch_sharding(run.mesh))
        for name, value in made_up_batch(run.config, 16).items()
    }


def test_an_image_is_judged_as_it_can_be_shown_and_a_latent_as_it_is(tmp_path):
    path = classifier_file(tmp_path, channels=4)
    latents = rewards.read(make_run(path, data__channels=4), str(path))
    images = rewards.read(make_run(path), str(classifier_file(tmp_path)))
    rng = np.random.default_rng(0)
    for found, channels, same in ((latents, 4, False), (images, 1, True)):
        x = 3 * rng.standard_normal((2, 8, 8, channels), np.float32)
        judge = jax.jit(found.net(found.params))
        scores, clipped = judge(x), judge(np.clip(x, -1, 1))
        assert scores.cosines.shape == scores.logits.shape == (2, 10)
        assert np.abs(scores.cosines).max() <= 1 + 1e-6
        assert np.array_equal(scores.logits, clipped.logits) == same


@pytest.mark.parametrize(
    "given, said",
    [
        ("nowhere.safetensors", "no such file"),
        ("damaged.safetensors", "truncated"),
        ("other.safetensors", "its arrays are not those of a classifier"),
        ("halved.safetensors", "its arrays are not those of a classifier"),
        ("7_1_0.safetensors", "10 classes and 1 channels .*, and is of 7 and 1"),
        ("10_3_0.safetensors", "10 classes and 1 channels .*, and is of 10 and 3"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(given, said, tmp_path):
    whole = classifier_file(tmp_path)
    classifier_file(tmp_path, classes=7), classifier_file(tmp_path, channels=3)
    (tmp_path / "damaged.safetensors").write_bytes(whole.read_bytes()[:5000])
    arrays = safetensors.numpy.load_file(whole)
    safetensors.numpy.save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    halved = arrays | {"projection/kernel": arrays["projection/kernel"][:, :32]}
    safetensors.numpy.save_file(halved, tmp_path / "halved.safetensors")
    path = str(tmp_path / given)
    with pytest.raises(ValueError, match=f"^objective.reward.classifier is '{re.escape(path)}'; it must .*{said}"):
        with_teachers(make_run(path))


@pytest.mark.nightly
def test_the_command_trains_one_that_knows_digits_and_a_run_goes_on_with_the_same_only(
    tmp_path, data_directory, capsys
):
    path, workdir = tmp_path / "new" / "digits.safetensors", tmp_path / "run"
    given = {"loader.directory": str(data_directory)}
    arguments = [f"--workdir={workdir}", f"--config.objective.reward.classifier={path}"]
    with one_device():
        classify.main(["--config=digits", f"--out={path}", "--steps=60", *flags(given)])
        said = capsys.readouterr().out
        assert float(re.search(r"([\d.]+)% of what is held out", said)[1]) > 80 and str(path) in said
        train.main(["--config=digits", *arguments, *flags(SMALL | given | {"objective.reward.name": "similarity"})])
        record = (workdir / "starts.jsonl").read_text()
        moved = tmp_path / "moved.safetensors"
        files.replace(moved, path.read_bytes())
        again = [f"--workdir={workdir}", "--config.training.steps=3"]
        train.main([*again, f"--config.objective.reward.classifier={moved}"])
        files.replace(epath.Path(moved), classifier_file(tmp_path).read_bytes())
        line = told(train.main, [*again[:1], "--config.training.steps=4"], capsys)
    assert f"objective.reward.classifier is {str(moved)!r}; it must be the classifier that" in line, line
    assert "fingerprint" in record
