"""Bits per dimension of a run's data: against a density that is known, by the command, and where they are refused."""

import dataclasses
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tests.helpers.configs import TINY_NETWORK
from tests.helpers.workdirs import one_device, told
from tim_jax import evaluate
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.evaluation import likelihood
from tim_jax.runs.likelihood import Likelihood, open_likelihood
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.gaussian import Gaussian
from tim_jax.transitions.likelihood import dequantise
from tim_jax.transitions.sampling.noise import image_keys
from tim_jax.types import Output

RUN = pathlib.Path(__file__).resolve().parents[2] / "notebooks" / "digits"
MEAN, STD = 0.2, 0.5


def known(params):
    """A network that knows N(MEAN, STD²), each class brighter by a tenth than the one before."""
    transport = TRANSPORTS["ot_fm"]()

    def answer(q):
        mean = MEAN + 0.1 * q.condition["label"][:, None, None, None]
        return Output(Gaussian(transport, mean, STD).F(q.x_t, q.t, q.r))

    return lambda queries: tuple(map(answer, queries))


def test_bits_are_those_of_the_density_that_the_network_knows():
    changes = TINY_NETWORK | {
        "evaluation.metrics": "('bits_per_dim',)", "evaluation.likelihood.probes": "0", "evaluation.batch_size": "2",
        "evaluation.likelihood.steps": "16",
    }  # fmt: skip
    run = build(load_config("digits", changes), jax.devices()[:2])
    step = dataclasses.replace(run.trainer.step, nets={"float32": known})
    run = dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, step=step))
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.float32) / 127.5 - 1
    labels = np.array([0, 3, 1], np.int32)
    found = Likelihood(run, {}).bits(None, images, labels, seed=5)
    x = np.asarray(dequantise(jnp.asarray(images), image_keys(5, jnp.arange(3))), np.float64)
    nats = scipy.stats.norm.logpdf(x, MEAN + 0.1 * labels[:, None, None, None], STD).reshape(3, -1).mean(axis=1)
    np.testing.assert_allclose(found, -nats / math.log(2) + math.log2(127.5), atol=1e-3)


def test_the_error_is_that_of_the_mean_over_images():
    bits = np.random.default_rng(0).normal(3, 1, (2, 50))
    found = likelihood.summary(bits)
    assert found["bits_per_dim"] == pytest.approx(bits.mean()) and found["images"] == 50
    assert found["error"] == pytest.approx(scipy.stats.sem(bits.mean(axis=0)))
    assert found["seeds"] == pytest.approx(bits.mean(axis=1)) and likelihood.summary(bits[:, :1])["error"] == 0


@pytest.mark.slow
def test_the_command_measures_both_parts_of_the_data(tmp_path, capsys):
    few = ["--config.evaluation.likelihood.num_images=6", "--config.evaluation.likelihood.steps=4"]
    with one_device():
        evaluate.main([f"--workdir={RUN}", f"--out={tmp_path}", "--metrics=bits_per_dim", "--seeds=2", *few])
    found = json.loads((tmp_path / "bits_per_dim.json").read_text())
    assert list(found["parts"]) == ["training part", "held out"] and found["step"] == 4000
    assert found["settings"] == {"steps": 4, "probes": 1, "num_images": 6}
    assert all(1 < part["bits_per_dim"] < 9 and part["images"] == 6 for part in found["parts"].values())
    assert (tmp_path / "bits_per_dim.md").read_text() in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(likelihood.NAMES), "no samples are drawn"


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--metrics=bits_per_dim", "--steps=4"], "--steps is 4"),
        (["--config.evaluation.metrics=('bits_per_dim',)", "--operator=greyscale"], "--operator is greyscale; it must"),
        (["--metrics=bits_per_dim", "--nearest=3"], "--nearest is 3; it must be left out where bits_per_dim alone"),
        (["--metrics=bits_per_dim", "--config.sampling.sampler=euler"], "--config.sampling.sampler is euler; it must"),
        (["--metrics=bits_per_dim", "--config.evaluation.labels=data"], "--config.evaluation.labels is data; it must"),
        (
            ["--config.evaluation.dinov2=x"],
            "evaluation.dinov2 is 'x'; it must be left out where evaluation.features is",
        ),
        (["--metrics=bits"], "--metrics: evaluation.metrics is ('bits',)"),
        (["--metrics=frechet", "--config.evaluation.metrics=('mmd',)"], "--config.evaluation.metrics"),
        (["--metrics=frechet,bits_per_dim", "--steps=1", "--guidance=1,2"], "evaluation.metrics is"),
        (["--config.evaluation.likelihood.steps=8"], "evaluation.likelihood.steps is 8"),
        (["--metrics=bits_per_dim", "--config.evaluation.likelihood.probes=-1"], "evaluation.likelihood.probes is -1"),
    ],
)
def test_one_line_says_what_is_wrong(arguments, named, tmp_path, capsys):
    with one_device():
        assert named in told(evaluate.main, [f"--workdir={RUN}", f"--out={tmp_path}", *arguments], capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        {"data.channels": "4"},
        {"model.condition": "text", "data.text_width": "8", "data.text_tokens": "5"},
        {"objective.name": "flow_matching", "objective.coupling.task": "super_resolution"},
        {"objective.name": "difference_transition_matching", "times.share_equal": "1.0"},
    ],
)
def test_runs_without_a_density_of_images_are_refused(changes):
    changes = TINY_NETWORK | {"evaluation.metrics": "('bits_per_dim',)"} | changes
    with one_device(), pytest.raises(ValueError, match=r"^(evaluation|objective)\.[a-z.]+ is .*; it must be"):
        open_likelihood(build(load_config("digits", changes)))
