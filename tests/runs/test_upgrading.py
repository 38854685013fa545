"""A workdir that version 0.1 made, with its names of keys and weights, trains on and samples."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from fractions import Fraction

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from tests.helpers.configs import flags
from tests.helpers.workdirs import one_device, told
from tim_jax import sample, train
from tim_jax.config import loading
from tim_jax.config.keys import flatten
from tim_jax.config.renames import KEYS, WEIGHTS
from tim_jax.runs import workdir
from tim_jax.training import names, warm_start
from tim_jax.transitions.times import Times

MADE = pathlib.Path(__file__).parents[1] / "golden" / "workdir_0_1"
# What it was made with (see tests/golden/README.md), by today's names.
RUN = {
    "model.width": 8, "model.depth": 1, "model.heads": 1, "model.bottleneck": 4, "model.encoder_depth": 1,
    "model.qk_norm": False, "model.interval_aware": False, "model.separate_interval_embedder": False,
    "model.remat": "full", "ema.slow": 0.5, "data.batch_size": 16, "optimizer.warmup_steps": 0,
    "optimizer.learning_rate_factors": "(('label_embedder', 10.0),)", "times.distribution": "log_normal",
    "times.P_mean": -0.2, "times.P_std": 1.2, "objective.weight.kernel": "sqrt", "objective.weight.scale": "odds",
    "objective.weight.sigma_d": 0.7, "objective.adaptive.power": 0.5, "objective.adaptive.offset": 0.01,
    "objective.tangent.warmup_steps": 10, "objective.tangent.max_share": 0.9, "objective.velocity": "online",
    "training.log_every": 1, "training.sample_steps": "(1,)", "checkpoint.keep": 1, "sampling.ema": "online",
}  # fmt: skip


def rounded_down(times, count, batch=0):
    """Which examples had r = t and r = T_min in version 0.1, the same in every batch, whatever was left over."""

    def spread(share, count):
        return np.diff([int(n * Fraction(share).limit_denominator(10_000)) for n in range(count + 1)]) > 0

    equal, minimal = spread(times.share_equal, count), np.zeros(count, bool)
    others = np.flatnonzero(~equal)
    minimal[others] = spread(times.share_min / (1 - times.share_equal), len(others))
    return equal, minimal


# A command with that assignment: its module, then its arguments.
AS_BEFORE = """
import importlib, sys
from tests.runs.test_upgrading import Times, rounded_down
Times.assign = Times.flags = rounded_down
importlib.import_module(sys.argv[1]).main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def run(data_directory, tmp_path_factory):
    """The workdir, trained on from step 2 to step 4, and samples (3, 8, 8, 1) from before and after.

    Of its 16 examples four fifths have r = t, and a twentieth r = T_min, which are no whole numbers: times are assigned
    as they were, so that all other numbers can be compared.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Times, "assign", rounded_down)
        patch.setattr(Times, "flags", rounded_down)
        return train_on(data_directory, tmp_path_factory)


def train_on(data_directory, tmp_path_factory):
    folder, samples = tmp_path_factory.mktemp("0_1") / "run", {}
    shutil.copytree(MADE / "workdir", folder)
    keys = flags(RUN | {"training.steps": 4, "loader.directory": data_directory})
    with one_device():
        for step in (2, 4):
            if step == 4:
                train.main(["--config=digits_tiny", f"--workdir={folder}", *keys])
            out = folder / f"sampled_at_{step}"
            sample.main([f"--workdir={folder}", "--steps=2", "--labels=0,1,2", f"--out={out}"])
            (arrays,) = out.rglob("*.npz")
            samples[f"samples_at_{step}"] = np.load(arrays)["steps2"]
    return folder, samples


@pytest.mark.slow
def test_it_trains_on_and_samples_as_version_0_1_did(run):
    """To the last bit on the machine that made the numbers; elsewhere to what compilers differ by."""
    folder, samples = run
    expected = np.load(MADE / "expected.npz")
    saved = warm_start.find(str(folder), "--workdir")
    assert saved.step == 4
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for weights, part in (("online", "params/student/"), ("slow", "emas/slow/")):
        listed = [name.removeprefix(part) for name in expected.files if name.startswith(part)]
        assert sorted(listed) == sorted(warm_start.weights_of(saved)[weights])
        shapes = {name: jax.ShapeDtypeStruct(expected[part + name].shape, np.float32, sharding=here) for name in listed}
        for name, value in warm_start.read_weights(saved, weights, shapes).items():
            np.testing.assert_allclose(value, expected[part + name], atol=1e-5, err_msg=name)
    for name, images in samples.items():
        np.testing.assert_allclose(images, expected[name], atol=1e-4)
    losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(losses, expected["losses"], rtol=1e-5)


@pytest.mark.nightly
def test_it_trains_on_and_samples_to_the_last_roundings(tmp_path):
    """As a user has it, a process of its own without the flags of the tests.

    Machines of the kind that made the numbers give the same bits; another kind of processor differed by 1e-10.
    """
    folder, found = shutil.copytree(MADE / "workdir", tmp_path / "run"), {}
    keys = flags(RUN | {"training.steps": 4, "loader.directory": tmp_path / "data"})
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}

    def command(module, *arguments):
        python = [sys.executable, "-c", AS_BEFORE, module, f"--workdir={folder}", *arguments]
        subprocess.run(python, env=environment, cwd=MADE.parents[2], check=True)

    for step in (2, 4):
        if step == 4:
            command("tim_jax.train", "--config=digits_tiny", *keys)
        command("tim_jax.sample", "--steps=2", "--labels=0,1,2", f"--out={tmp_path / str(step)}")
        (arrays,) = (tmp_path / str(step)).rglob("*.npz")
        found[f"samples_at_{step}"] = np.load(arrays)["steps2"]
    with ocp.PyTreeCheckpointer() as reader:
        state = reader.restore(folder / "checkpoints" / "4" / "state")
    trees = {"params": {"student": state["params"]["online"]}, "emas": {"slow": state["emas"]["slow"]}}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found |= names.by_name(trees) | {"losses": np.array([line["loss"] for line in lines])}
    expected = np.load(MADE / "expected.npz")
    assert found.keys() == set(expected.files)
    for name in expected.files:
        largest = np.abs(expected[name]).max()
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-6 * largest, err_msg=name)


def test_its_configuration_is_read_by_todays_names(tmp_path):
    folder = shutil.copytree(MADE / "workdir", tmp_path / "run")
    config = flatten(workdir.load(epath.Path(folder)))
    assert config.keys() == flatten(loading.load("base").get_config()).keys()
    for key in RUN.keys() & WEIGHTS:
        assert config[key] == "online"
    assert config["objective.weight.sigma_d"] == 0.7 and config["evaluation.max_images"] == 50
    assert config["evaluation.periodic.emas"] == ("online", "slow") and config["evaluation.periodic.steps"] == (1, 2)


@pytest.mark.parametrize("old", KEYS)
def test_an_old_name_is_answered_with_the_new_one(old, capsys):
    error = told(train.main, ["--config=digits_tiny", "--check", f"--config.{old}=1"], capsys)
    assert f"renamed to --config.{KEYS[old]}" in error
