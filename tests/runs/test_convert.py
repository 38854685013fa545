"""Official weights to a workdir and back: bit for bit, by the command, and what is wrong with files in one line."""

import collections
import io
import json
import pathlib
import pickle
import re
import sys
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tim_jax import convert
from tim_jax import sample as sampling
from tim_jax import train as training
from tim_jax.codecs import hub, torch_file
from tim_jax.training import sharding

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


def flags(keys):
    return [f"--config.{key}={value}" for key, value in keys.items()]


class Global:
    """Pickled as a name of a module, whatever it is."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __reduce__(self):
        raise AssertionError("pickled by Pickler.save_global")


class Call:
    """Pickled as a call of a Global."""

    def __init__(self, function, *args):
        self.function, self.args = function, args


class Stored:
    """Pickled as PyTorch pickles a storage."""

    def __init__(self, kind, name, count):
        self.key = ("storage", Global("torch", kind), name, "cpu", count)


class Pickler(pickle._Pickler):
    """Writes what PyTorch writes, which is not here, from Globals, Calls and Stored."""

    def persistent_id(self, value):
        return value.key if isinstance(value, Stored) else None

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Global):
            return self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
        if isinstance(value, Call):
            return self.save_reduce(value.function, value.args)
        return super().save(value, save_persistent_id)

    def save_reduce(self, func, args, *rest, **options):
        if not isinstance(func, Global):
            return super().save_reduce(func, args, *rest, **options)
        self.save(func)
        self.save(args)
        return self.write(pickle.REDUCE)


KINDS = {"float32": "FloatStorage", "bfloat16": "BFloat16Storage", "float16": "HalfStorage", "int64": "LongStorage"}


def view(stored, offset, shape, strides):
    """A tensor as PyTorch pickles it."""
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, stored, offset, shape, strides, False, collections.OrderedDict())


def tensor(name, array):
    stored = Stored(KINDS[str(array.dtype)], name, array.size)
    return view(stored, 0, array.shape, tuple(step // array.itemsize for step in array.strides))


def archive(path, content, storages, root="archive"):
    """A file like those of torch.save. storages: {name: bytes}."""
    data = io.BytesIO()
    Pickler(data, 2).dump(content)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{root}/data.pkl", data.getvalue())
        file.writestr(f"{root}/byteorder", "little")
        for name, values in storages.items():
            file.writestr(f"{root}/data/{name}", values)
        file.writestr(f"{root}/version", "3\n")


def save_bin(path, state):
    content = {name: tensor(str(i), array) for i, (name, array) in enumerate(state.items())}
    archive(path, content, {str(i): array.tobytes() for i, array in enumerate(state.values())})


@pytest.fixture
def released(tmp_path):
    """released(name): a file like the released one, with golden weights, and the flags that make a network of it."""

    def make(name, change=lambda state: None):
        called, keys = TINY[name]
        state = load_file(GOLDEN / f"{name}.safetensors")
        change(state)
        file = tmp_path / called
        save_bin(file, state) if file.suffix == ".bin" else save_file(state, file)
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
        convert.main(["export", str(work), str(back), f"--which={which}"])
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
    unaligned = flags(convert.WITHOUT_ALIGNMENT)
    start = [f"--config.start.checkpoint={work}", "--config.training.steps=1", f"--config.loader.directory={tmp_path}"]
    training.main(["--config=released_imagenet256", f"--workdir={tmp_path / 'on'}", *keys, *unaligned, *more, *start])
    convert.main(["export", str(tmp_path / "on"), str(tmp_path / "back.safetensors"), "--which=student"])
    exported = load_file(tmp_path / "back.safetensors")
    assert exported.keys() == state.keys()
    moved = [name for name in state if not np.array_equal(exported[name], state[name])]
    assert "final_layer.linear.weight" in moved
    assert all(np.abs(exported[name] - state[name]).max() < 0.1 for name in moved)


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
    "truncated bin": ("t2i_tiny", None, cut, [], "is truncated or no zip archive of PyTorch"),
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
    monkeypatch.setattr(convert.checkpoints.ocp.CheckpointManager, "save", fail)
    with pytest.raises(SystemExit) as exit:
        convert.main(["import", str(file), str(tmp_path / "run"), *keys])
    assert exit.value.code == 1 and "No space left on device" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_views_of_one_storage_are_read_as_what_they_show(tmp_path):
    """Transposed, beginning later, sharing, of other types, empty; and as parameters, with what torch.save adds."""
    values = np.arange(24, dtype=np.float32)
    half = np.arange(6).astype(jnp.bfloat16)
    content = collections.OrderedDict(
        turned=view(Stored("FloatStorage", "0", 24), 2, (5, 4), (1, 5)),
        shared=view(Stored("FloatStorage", "0", 24), 0, (3,), (1,)),
        half=Call(Global("torch._utils", "_rebuild_parameter"), tensor("1", half), True, collections.OrderedDict()),
        scalar=tensor("2", np.array(7)),
        none=tensor("3", np.zeros((0, 4), np.float32)),
    )  # fmt: skip
    content._metadata = {"": {"version": 1}}
    storages = {"0": values.tobytes(), "1": half.tobytes(), "2": np.array(7).tobytes(), "3": b""}
    archive(tmp_path / "weights.bin", content, storages, root="t2i_model")
    found = torch_file.read(tmp_path / "weights.bin")
    np.testing.assert_array_equal(found["turned"], values[2:22].reshape(4, 5).T)
    np.testing.assert_array_equal(found["shared"], values[:3])
    assert found["half"].dtype == jnp.bfloat16 and found["half"].tobytes() == half.tobytes()
    assert found["scalar"] == 7 and found["scalar"].dtype == np.int64
    assert found["none"].shape == (0, 4)


# Fault: content of the pickle, storages, what is said.
BAD = {
    "a command": (
        {"a": Call(Global("os", "system"), "touch ran")},
        {},
        "it asks for os.system, which no file of weights needs; it is not run",
    ),
    "a builtin": ({"a": Call(Global("builtins", "eval"), "1")}, {}, "it asks for builtins.eval"),
    "a method of what is known": ({"a": Global("collections", "OrderedDict.fromkeys")}, {}, "OrderedDict.fromkeys"),
    "other torch": ({"a": Global("torch", "load")}, {}, "it asks for torch.load"),
    "too large": (
        {"a": view(Stored("FloatStorage", "0", 4), 0, (4,), (2,))},
        {"0": bytes(16)},
        r"a tensor of shape \(4,\) does not fit its storage of 4 values",
    ),
    "before its storage": (
        {"a": view(Stored("FloatStorage", "0", 4), -4, (2,), (1,))},
        {"0": bytes(16)},
        "does not fit its storage",
    ),
    "short storage": ({"a": tensor("0", np.zeros(4, np.float32))}, {"0": bytes(12)}, "storage 0 has 3 values, not 4"),
    "no storage": ({"a": tensor("0", np.zeros(4, np.float32))}, {}, "its pickle is broken"),
    "no tensors": ({"step": 3, "model": {}}, {}, "holds things that are no tensors: step, model"),
    "no dictionary": ([1, 2], {}, "holds a list, not a dictionary of tensors"),
    "a bare storage": ({"a": Stored("FloatStorage", "0", 4)}, {"0": bytes(16)}, "holds things that are no tensors: a"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_a_pickle_that_wants_more_than_tensors_is_refused(tmp_path, monkeypatch, fault):
    monkeypatch.chdir(tmp_path)
    content, storages, message = BAD[fault]
    archive(tmp_path / "weights.bin", content, storages)
    with pytest.raises(ValueError, match=message) as error:
        torch_file.read(tmp_path / "weights.bin")
    assert "\n" not in str(error.value) and str(tmp_path / "weights.bin") in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_a_zip_of_something_else_and_a_damaged_byte_are_refused(tmp_path, released):
    path = tmp_path / "weights.bin"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match="not one of PyTorch"):
        torch_file.read(path)
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match="no zip archive of PyTorch"):
        torch_file.read(path)
    file, _, _ = released("t2i_tiny")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is truncated or no zip archive of PyTorch .*CRC"):
        torch_file.read(path)


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


def test_files_of_the_hub_come_with_their_licence(stand_in, tmp_path, capsys):
    assert hub.local("a/b.bin") == pathlib.Path("a/b.bin")
    assert hub.local("hf://me/mine/w.bin") == tmp_path / "me_mine" / "w.bin"
    assert "licence apache-2.0" in capsys.readouterr().err
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
