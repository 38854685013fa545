"""Official weights to a workdir and back: bit for bit, by the command, and what is wrong with files in one line."""

import json
import pathlib
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.helpers.configs import flags
from tests.helpers.torch_files import save_torch
from tim_jax import convert
from tim_jax import sample as sampling
from tim_jax import train as training
from tim_jax.runs import conversion
from tim_jax.system import hub
from tim_jax.training import checkpoints, sharding

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
MODEL = {
    "model.width": "64", "model.depth": "3", "model.heads": "4", "model.bottleneck": "24", "model.encoder_depth": "2",
    "model.projector_width": "32", "model.dtype": "float32", "data.height": "8", "data.width": "8",
    "data.channels": "4", "data.features_width": "16", "model.remat": "none",
}  # fmt: skip
# Golden weights, by the name of the released file they are like: the network's own keys.
TINY = {
    "c2i_tiny": ("c2i_model_256.safetensors", {"model.num_classes": "10", "data.batch_size": "8"}),
    "t2i_tiny": ("t2i_model.bin", {"model.patch_size": "2", "data.text_width": "24", "data.text_tokens": "7"}),
}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(sharding.jax, "devices", lambda first=jax.devices()[:1]: first)


@pytest.fixture
def released(tmp_path):
    """released(name): a file like the released one, with golden weights, and the flags that make a network of it."""

    def make(name, change=lambda state: None):
        called, keys = TINY[name]
        state = load_file(GOLDEN / f"{name}.safetensors")
        change(state)
        file = tmp_path / called
        save_torch(file, state) if file.suffix == ".bin" else save_file(state, file)
        return file, flags(MODEL | keys), state

    return make


@pytest.mark.parametrize("name", TINY)
def test_import_and_export_give_the_same_bits(released, tmp_path, name, capsys):
    file, keys, state = released(name)
    work, back = tmp_path / "run", tmp_path / "out" / "back.safetensors"
    convert.main(["import", str(file), str(work), *keys])
    assert f"parameters of {file.name} are step 0 of {work}" in capsys.readouterr().out
    recorded = json.loads((work / "config.json").read_text())["model"]
    assert recorded["rope_order"] == "official" and recorded["use_text_mask"] == (name != "t2i_tiny")
    for which in ("online", "slow"):
        convert.main(["export", str(work), str(back), f"--ema={which}"])
        exported = load_file(back)
        assert exported.keys() == state.keys()
        for key, array in state.items():
            assert exported[key].dtype == array.dtype and exported[key].tobytes() == array.tobytes(), key
        back.unlink()


def test_half_precision_weights_come_back_as_they_were(released, tmp_path):
    def halve(state):
        state.update({name: array.astype(jnp.bfloat16) for name, array in state.items()})

    file, keys, state = released("t2i_tiny", halve)
    convert.main(["import", str(file), str(tmp_path / "run"), *keys])
    convert.main(["export", str(tmp_path / "run"), str(tmp_path / "back.safetensors"), "--dtype=bfloat16"])
    exported = load_file(tmp_path / "back.safetensors")
    for key, array in state.items():
        assert exported[key].dtype == array.dtype and exported[key].tobytes() == array.tobytes(), key


@pytest.mark.slow
def test_imported_weights_sample_train_on_and_are_exported(released, tmp_path):
    """And a file without the head that only training uses is taken, too: it trains without alignment."""

    def without_head(state):
        for name in [name for name in state if name.startswith("projector")]:
            del state[name]

    file, keys, state = released("c2i_tiny", without_head)
    keys = [key for key in keys if "features_width" not in key and "projector" not in key]
    work = tmp_path / "run"
    convert.main(["import", str(file), str(work), *keys])
    sampling.main([f"--workdir={work}", "--steps=2", "--count=4"])
    (arrays,) = (work / "sampled").glob("*.npz")
    assert np.isfinite(np.load(arrays)["steps2"]).all()

    latents = tmp_path / "latents" / "0"
    latents.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(8):
        array = rng.standard_normal((2, 4, 8, 8)).astype(np.float32)
        save_file({"latent": array, "label": np.array(0)}, latents / f"{i}.safetensors")
    more = [f"--config.data.path={tmp_path / 'latents'}", "--config.data.buckets.table=((8, 8),)"]
    unaligned = flags(conversion.WITHOUT_ALIGNMENT)
    start = [f"--config.start.checkpoint={work}", "--config.training.steps=1", f"--config.loader.directory={tmp_path}"]
    training.main(["--config=released_imagenet256", f"--workdir={tmp_path / 'on'}", *keys, *unaligned, *more, *start])
    convert.main(["export", str(tmp_path / "on"), str(tmp_path / "back.safetensors"), "--ema=online"])
    exported = load_file(tmp_path / "back.safetensors")
    assert exported.keys() == state.keys()
    moved = [name for name in state if not np.array_equal(exported[name], state[name])]
    assert "final_layer.linear.weight" in moved
    assert all(np.abs(exported[name] - state[name]).max() < 0.1 for name in moved)


def test_names_of_classes_come_with_an_import(released, tmp_path, capsys):
    file, keys, _ = released("c2i_tiny")
    (tmp_path / "names.txt").write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    convert.main(["import", str(file), str(tmp_path / "run"), *keys, f"--classes={tmp_path / 'names.txt'}"])
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == ["tench, Tinca tinca", "goldfish"]


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


# Fault: weights, what is done to the state, what to the file, flags besides, what is said.
FAULTS = {
    "missing": ("c2i_tiny", lambda s: s.pop("x_embedder.proj.bias"), None, [], "missing: x_embedder.proj.bias"),
    "unknown": ("t2i_tiny", lambda s: s.update({"pos": np.zeros(2, np.float32)}), None, [], "unknown: pos"),
    "misshapen": (
        "c2i_tiny",
        lambda s: s.update({"x_embedder.proj.bias": np.zeros(3, np.float32)}),
        None,
        [],
        r"misshapen: x_embedder.proj.bias \(3,\) instead of \(64,\)",
    ),
    "truncated": ("c2i_tiny", None, cut, [], "is truncated or no safetensors file"),
    "truncated bin": ("t2i_tiny", None, cut, [], "is truncated or no PyTorch file"),
    "gone": ("c2i_tiny", None, pathlib.Path.unlink, [], "is no file on this machine"),
    "another name": (
        "c2i_tiny",
        None,
        lambda path: path.rename(path.with_name("mine.safetensors")),
        [],
        "is called like none of the released files .*--config",
    ),
    "another network": ("c2i_tiny", None, None, ["--config.model.depth=2"], "have depth 3: the network has 2"),
    "no such key": ("c2i_tiny", None, None, ["--config.model.deep=2"], "did you mean"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_told_in_one_line_and_nothing_is_written(released, tmp_path, fault, capsys):
    name, change, damage, more, message = FAULTS[fault]
    file, keys, _ = released(name, change or (lambda state: None))
    if damage:
        damage(file)
        file = file if file.exists() or fault == "gone" else file.with_name("mine.safetensors")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as exit:
        convert.main(["import", str(file), str(tmp_path / "run"), *keys, *more])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.count("\n") == 1
    assert re.search(message, error), error
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_is_written_over(released, tmp_path, capsys):
    file, keys, _ = released("c2i_tiny")
    (tmp_path / "run").mkdir()
    for args in (["import", str(file), str(tmp_path / "run"), *keys], ["export", str(tmp_path / "run"), str(file)]):
        with pytest.raises(SystemExit) as exit:
            convert.main(args)
        assert exit.value.code == 2
        assert "is there already" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(released, tmp_path, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    file, keys, _ = released("c2i_tiny")
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(checkpoints.ocp.CheckpointManager, "save", fail)
    with pytest.raises(SystemExit) as exit:
        convert.main(["import", str(file), str(tmp_path / "run"), *keys])
    assert exit.value.code == 1 and "No space left on device" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """A huggingface_hub that has one file and one folder, or, on request, no network."""
    package = types.ModuleType("huggingface_hub")
    package.offline = False
    (tmp_path / "sub").mkdir()

    def answer(value):
        if package.offline:
            raise ConnectionError("no route to host\nmore")
        return value

    package.model_info = lambda repository: answer(types.SimpleNamespace(card_data={"license": "apache-2.0"}))
    package.hf_hub_download = lambda repository, file: answer(str(tmp_path / repository.replace("/", "_") / file))
    package.snapshot_download = lambda repository, allow_patterns: answer(str(tmp_path)) + "" * len(allow_patterns)
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    return package


def test_files_of_the_hub_come_with_their_licence(stand_in, tmp_path, caplog):
    assert hub.local("a/b.bin") == pathlib.Path("a/b.bin")
    assert hub.local("hf://me/mine/w.bin") == tmp_path / "me_mine" / "w.bin"
    assert "licence apache-2.0" in caplog.text
    assert hub.local("hf://me/mine/sub") == tmp_path / "sub"
    assert hub.local("hf://me/mine") == tmp_path


def test_without_network_or_package_it_says_which_file_to_put_where(stand_in, monkeypatch):
    stand_in.offline = True
    said = "put w.bin of https://huggingface.co/me/mine on this machine and give that path instead"
    with pytest.raises(ValueError, match=rf"^hf://me/mine/w.bin: cannot be fetched \(no route to host\); {said}$"):
        hub.local("hf://me/mine/w.bin")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=f"needs the package huggingface_hub; install it, or {said}"):
        hub.local("hf://me/mine/w.bin")
    with pytest.raises(ValueError, match="must be hf://owner/repository"):
        hub.local("hf://mine")
