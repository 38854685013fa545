"""Networks that others released: in by name, out bit for bit, and what does not fit in one line."""

import json
import re

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file, save_file

import tim_jax
from tests.helpers import in_pytorch, released_networks
from tests.helpers.configs import flags
from tests.helpers.released_networks import NETWORKS, keys, write
from tim_jax import convert
from tim_jax import sample as sampling
from tim_jax import train as training
from tim_jax.runs import conversion
from tim_jax.training import sharding

QUICK = ("sit_xl_2", "jit_b_16", "rae_ditdh_xl")  # of round trips; the others are of the slow suite
STEPS = 3  # of distillation in the slow suite, of those of QUICK; fifty at night, of all


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(sharding.jax, "devices", lambda first=jax.devices()[:1]: first)


def exported(work, file, *options):
    convert.main(["export", str(work), str(file), *options])
    return load_file(file)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NETWORKS])
def test_what_came_in_goes_out_bit_for_bit(name, tmp_path):
    file, state = write(tmp_path, name)
    convert.main(["import", str(file), str(tmp_path / "run"), *keys(name)])
    back = exported(tmp_path / "run", tmp_path / "back.safetensors")
    assert back.keys() == state.keys()
    for key, array in state.items():
        assert back[key].dtype == array.dtype and back[key].tobytes() == array.tobytes(), key


def test_an_export_says_itself_what_it_is(tmp_path, caplog):
    """The file that is exported does; that which came in, as others have it, with arrays besides, is told of them."""
    state = {"net." + name: array for name, array in released_networks.weights("sit_xl_2").items()}
    besides = {f"vae.{name}": np.zeros(2, np.float32) for name in ("bias", "weight")}
    save_file(state | besides, tmp_path / "sit.safetensors")
    with caplog.at_level("WARNING"):
        convert.main(["import", str(tmp_path / "sit.safetensors"), str(tmp_path / "run"), *keys("sit_xl_2")])
    assert "sit.safetensors: has 2 further arrays that no copy of the network has" in caplog.text
    assert "the first is vae.bias" in caplog.text
    exported(tmp_path / "run", tmp_path / "back.safetensors")
    convert.main(["import", str(tmp_path / "back.safetensors"), str(tmp_path / "again")])
    recorded = [json.loads((tmp_path / each / "config.json").read_text()) for each in ("run", "again")]
    assert recorded[0]["model"] == recorded[1]["model"]


# Fault: what is done to the state, flags besides, what is said.
FAULTS = {
    "another network": (
        None,
        ["--as=repa_sit_xl_2", "--config.model.depth=2"],
        "missing: projectors|unknown|misshapen",
    ),
    "missing": (lambda s: s.pop("blocks.1.mlp.fc2.bias"), [], "missing: blocks.1.mlp.fc2.bias"),
    "further": (lambda s: s.update(logvar=np.zeros(2, np.float32)), [], "unknown: logvar"),
    "classes": (
        None,
        ["--config.model.num_classes=9"],
        r"misshapen: y_embedder.embedding_table.weight \(11, 64\) .*10",
    ),
    "channels": (None, ["--config.data.channels=3"], r"misshapen: final_layer.linear.bias \(32,\) instead of \(24,\)"),
    "blocks": (None, ["--config.model.depth=3"], "depth 2: the network has 3; the first to differ is blocks.2.adaLN"),
    "grid": (None, ["--config.data.height=4", "--config.data.width=4"], r"misshapen: pos_embed \(1, 16, 64\)"),
    "places": (lambda s: s.update(pos_embed=2 * s["pos_embed"]), [], "of other values .*: pos_embed"),
    "copy": (None, ["--ema=fast"], "--ema is 'fast'; it must be one of"),
    "name": (None, ["--as=sit_xl_3"], "--as is 'sit_xl_3'; it must be one of ddt_xl_2, "),
    "both": (None, ["--config=digits"], "--as is 'sit_xl_2'; it must be left out where --config"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_named_in_one_line_and_nothing_is_written(fault, tmp_path, capsys):
    change, more, message = FAULTS[fault]
    file, _ = write(tmp_path, "sit_xl_2", change=change or (lambda state: None))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as exit:
        convert.main(["import", str(file), str(tmp_path / "run"), *keys("sit_xl_2"), *more])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.count("\n") == 1
    assert re.search(message, error), error
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_a_file_is_loaded_like_the_workdir_that_it_becomes(tmp_path):
    file, _ = write(tmp_path, "jit_b_16")
    convert.main(["import", str(file), str(tmp_path / "run"), *keys("jit_b_16")])
    sections = unflatten_dict(released_networks.TINY | NETWORKS["jit_b_16"][1], sep=".")
    loaded = [tim_jax.load(file, as_="jit_b_16", **sections), tim_jax.load(tmp_path / "run")]
    images = [tim([3, 5], steps=2, seed=1) for tim in loaded]
    assert loaded[0].facts()["parameters"] == loaded[1].facts()["parameters"]
    np.testing.assert_array_equal(*(np.stack([np.asarray(image) for image in each]) for each in images))


def latents(folder, name):
    """A folder of latents like those of a released network, and the flags that train on them."""
    shape = np.load(released_networks.GOLDEN / f"{NETWORKS[name][0]}.npz")["x"].shape[1:]
    (folder / "0").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(8):
        array = rng.standard_normal((2, *shape)).astype(np.float32)
        save_file({"latent": array, "label": np.array(0)}, folder / "0" / f"{i}.safetensors")
    return [
        "--config.data.source=latents",
        f"--config.data.path={folder}",
        f"--config.data.buckets.table=({shape[1:]},)",
    ]


def distilled(name, tmp_path, steps):
    """Weights, before and after `steps` steps of learning any number of steps from what was imported, and samples."""
    file, state = write(tmp_path, name, seed=1)
    work, student = tmp_path / "run", tmp_path / "student"
    convert.main(["import", str(file), str(work), *keys(name)])
    for sampler in ("euler", "heun", "sde"):
        sampling.main(
            [f"--workdir={work}", "--steps=2", "--count=2", f"--config.sampling.sampler={sampler}", "--guidance=1.5",
             f"--out={tmp_path / sampler}"]
        )  # fmt: skip
    given = ["--config.objective.name=tim", "--config.objective.velocity=teacher", "--config.sampling.sampler=default",
             f"--config.teacher.checkpoint={work}", f"--config.start.checkpoint={work}",
             f"--config.training.steps={steps}", f"--config.loader.directory={tmp_path}"]  # fmt: skip
    if any(key.startswith("projector") for key in state):  # a head that only training uses
        given += [*flags(conversion.WITHOUT_ALIGNMENT), "--config.start.reinitialise=('projector',)"]
    own = [flag for flag in keys(name)[1:] if "features" not in flag and "projector" not in flag]
    data = latents(tmp_path / "data", name)
    training.main([f"--config=released/{name}", f"--workdir={student}", *own, *data, *given])
    sampling.main([f"--workdir={student}", "--steps=1", "--count=2", f"--out={tmp_path / 'one'}"])
    convert.main(["export", str(student), str(tmp_path / "torch"), "--to=torch"])
    in_pytorch.assert_same(tmp_path / "torch")
    return state, exported(student, tmp_path / "student.safetensors", "--ema=online")


def check(name, tmp_path, steps):
    before, after = distilled(name, tmp_path, steps)
    own = {key for key in after if key.startswith("tim_jax.delta_embedder/")}
    assert len(own) == 4 and after.keys() - own == {key for key in before if not key.startswith("projector")}
    assert all(np.isfinite(array).all() for array in after.values())
    assert any(not np.array_equal(after[key], before[key]) for key in after.keys() - own)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_it_samples_teaches_and_is_a_start(name, tmp_path):
    check(name, tmp_path, STEPS)


@pytest.mark.nightly
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_distilled_for_fifty_steps(name, tmp_path):
    check(name, tmp_path, 50)
