"""Runs as one file of PyTorch: the same samples, in a process that finds neither JAX nor this package."""

import importlib.util

import numpy as np
import pytest
import torch

from tests.helpers import in_pytorch, workdirs
from tim_jax import convert
from tim_jax.runs import to_torch
from tim_jax.runs.interface import load
from tim_jax.transitions import TRANSPORTS
from tim_jax.transitions.sampling.plans import host_transport

GUIDED = {"sampling.guidance": "1.5", "sampling.guidance_low": "0.3"}
OTHERS = {
    "model.conditioning": "t,t-r", "model.separate_interval_embedder": "False", "model.qk_norm": "False",
    "model.class_tokens": "2", "sampling.sampler": "heun", "sampling.grid": "shifted",
}  # fmt: skip
SINGLE = {"model.bottleneck": "0", "model.clock": "1-t"}
PLACES = {"model.positions": "interpolated", "model.positions_side": "3"}
SIT = SINGLE | PLACES | {"model.network": "sit", "model.negated": "True"}
JIT = {
    "model.network": "jit", "model.depth": "2", "model.context_start": "1", "model.patch_bottleneck": "8",
    "model.class_tokens": "2", "transport.prediction": "x",
}  # fmt: skip
DITDH = {
    "model.network": "ditdh", "model.decoder_depth": "1", "model.decoder_width": "24", "model.decoder_heads": "2",
}  # fmt: skip
# Networks by name: configuration and what is changed of it.
RUNS = {
    "class": ("digits", workdirs.TINY | GUIDED),
    "text": ("photos_t2i", workdirs.TEXT | GUIDED),
    "others": ("digits", workdirs.TINY | OTHERS),
    "inputs": (
        "digits",
        workdirs.TINY | {"objective.name": "improved_mean_flow", "model.guidance_tokens": "2"} | GUIDED,
    ),
    "late": (
        "digits",
        workdirs.TINY | {"model.depth": "2", "model.decoupled_depth": "1", "transport.name": "trigflow"},
    ),
    "sit": ("photos", workdirs.TEXT | SIT | GUIDED | {"sampling.guidance_channels": "2"}),
    "lightningdit": ("digits", workdirs.TINY | SINGLE | {"model.network": "lightningdit", "model.interval": "tokens"}),
    "jit": ("digits", workdirs.TINY | SINGLE | JIT),
    "ddt": ("digits", workdirs.TINY | SINGLE | {"model.network": "ddt", "model.decoder_depth": "1"}),
    "ditdh": ("digits", workdirs.TINY | SINGLE | PLACES | DITDH),
    "data": (
        "digits",
        workdirs.TINY
        | {
            "transport.prediction": "x",
            "transport.noise_std": "2.0",
            "sampling.grid": "edm",
            "sampling.sampler": "euler",
        },
    ),
}
LONGEST = 700  # lines of a file, which is to be read


@pytest.fixture(autouse=True)
def one_device():
    with workdirs.one_device():
        yield


def exported(folder, name):
    """The folder that --to=torch makes of a tiny run."""
    configuration, changes = RUNS[name]
    workdir = workdirs.workdir(folder / "run", configuration, **changes)
    convert.main(["export", str(workdir), str(folder / "out"), "--to=torch"])
    return folder / "out"


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "class")) for name in RUNS])
def test_the_samples_are_the_same(tmp_path, name):
    in_pytorch.assert_same(exported(tmp_path, name))


def test_a_file_has_what_it_uses_and_nothing_else(tmp_path):
    """It is formatted, and without a name that is not used, as the modules are that it is written of."""
    out = exported(tmp_path, "class")
    assert {file.name for file in out.iterdir()} == {"README.md", "model.py", "model.safetensors"}
    text, card = (out / "model.py").read_text(), (out / "README.md").read_text()
    assert "tim_jax" not in text.replace('"tim_jax."', "").replace("tim_jax.a/b", "")
    for part in ("class DiT", "def sincos", "safetensors import"):
        assert part not in text
    for said in ("import torch, model", "model.sample(network", "tim_jax.load('out')", "license: other"):
        assert said in card
    assert len(text.splitlines()) < LONGEST
    assert load(out).facts()["condition"] == "10 classes"


def loaded(path):
    """A module of PyTorch by its file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", [path.stem for path in (to_torch.FOLDER / "transports").glob("[a-z]*.py")])
def test_transports_are_the_same(name, monkeypatch):
    theirs, ours = loaded(to_torch.FOLDER / "transports" / f"{name}.py"), TRANSPORTS[name]()
    host = host_transport(ours)
    monkeypatch.setattr(theirs, "RUN", {"transport": {"sigma_d": ours.sigma_d}}, raising=False)
    assert (theirs.T_MIN, theirs.T_MAX) == (ours.T_min, ours.T_max)
    times = np.linspace(ours.T_min, ours.T_max, 7)[1:]
    found = theirs.coefficients(torch.from_numpy(times))
    for value, function in zip(found, (host.alpha, host.sigma, host.alpha_hat, host.sigma_hat), strict=True):
        np.testing.assert_allclose(value.numpy(), function(times), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(theirs.c_noise(torch.from_numpy(times)).numpy(), host.c_noise(times), rtol=1e-12)
    ratio = host.ratio(times[:-1])
    np.testing.assert_allclose(theirs.time_of_ratio(torch.from_numpy(ratio)).numpy(), times[:-1], rtol=1e-9)
