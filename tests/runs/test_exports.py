"""Exported models: what is in the folder, that it comes back bit for bit in one command, and the way over a hub."""

import json
import re
import sys
import types

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.helpers import hub_server, workdirs
from tim_jax import convert
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.runs import exports, published, training
from tim_jax.runs.interface import load
from tim_jax.runs.workdir import restored
from tim_jax.training import warm_start

CLASSES = ["ant", "bee", "cat, domestic"]
SQUARE = workdirs.TINY | {"model.num_classes": "3", "loader.directory": "/home/somebody/cache", "mesh.data": "1"}
# Runs by name: configuration, changes, what the published code could not do with an export of them.
RUNS = {
    "square": ("digits", SQUARE, []),
    "published order": ("digits", SQUARE | {"model.rope_order": "official"}, []),
    "native": ("photos", workdirs.TINY | {"data.buckets.area": "256", "data.buckets.tokens": "256"}, ["rope_order"]),
    "text": ("photos_t2i", workdirs.TEXT, ["rope_order", "use_text_mask"]),
}


@pytest.fixture(autouse=True)
def one_device():
    with workdirs.one_device():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """made(name): a workdir of a run in RUNS, with a picture and names of classes."""
    found = {}

    def make(name):
        if name not in found:
            configuration, changes, _ = RUNS[name]
            found[name] = workdirs.workdir(tmp_path_factory.mktemp("exports") / "run", configuration, **changes)
            (found[name] / "classes.json").write_text(json.dumps(CLASSES))
            (found[name] / "samples").mkdir()
            Image.new("RGB", (4, 4)).save(found[name] / "samples" / "samples_00000001.png")
        return found[name]

    return make


def parameters(workdir):
    """{name: array} of a workdir's EMA."""
    saved = warm_start.find(str(workdir), "WORKDIR")
    shapes = warm_start.weights_of(saved)["slow"]
    abstract = build(restored(json.loads((workdir / "config.json").read_text()))).trainer.abstract.params["online"]
    read = warm_start.read_weights(saved, "slow", warm_start.names.by_name(abstract))
    assert shapes.keys() == read.keys()
    return {name: np.asarray(array) for name, array in read.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_an_export_is_imported_by_its_path_alone_and_comes_back_bit_for_bit(made, tmp_path, name, capsys):
    run, out = made(name), tmp_path / "out"
    convert.main(["export", str(run), str(out)])
    told = capsys.readouterr().out
    assert {file.name for file in out.iterdir()} == {"model.safetensors", "README.md", "samples.png"}
    for key in ("rope_order", "use_text_mask"):
        assert (f"model.{key}" in told) == (key in RUNS[name][2])
    convert.main(["import", str(out), str(tmp_path / "back")])
    before, after = parameters(run), parameters(tmp_path / "back")
    assert before.keys() == after.keys()
    for key, array in before.items():
        assert array.tobytes() == after[key].tobytes(), key
    assert json.loads((tmp_path / "back" / "classes.json").read_text()) == CLASSES
    there, here = (json.loads((folder / "config.json").read_text()) for folder in (run, tmp_path / "back"))
    machine = {"loader": None, "mesh": None}
    assert there | machine == here | machine
    assert here["mesh"] == load_config("digits", {}).mesh.to_dict()
    assert "somebody" not in (out / "model.safetensors").read_bytes().decode("latin-1")


@pytest.mark.slow
def test_a_single_file_is_enough(made, tmp_path):
    run, file = made("square"), tmp_path / "mine.safetensors"
    convert.main(["export", str(run), str(file), "--ema=online"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.safetensors"]
    origin = exports.origin_of(file)
    assert origin.classes == tuple(CLASSES) and origin.ema == "online" and origin.transposed
    convert.main(["import", str(file), str(tmp_path / "back")])
    pixels = [np.asarray(load(path)(["bee", 2], steps=2)) for path in (run, file, tmp_path / "back")]
    np.testing.assert_array_equal(pixels[0], pixels[1])
    np.testing.assert_array_equal(pixels[0], pixels[2])


def test_keys_that_make_a_run_what_it_is_stay_when_it_is_loaded(made, tmp_path):
    convert.main(["export", str(made("square")), str(tmp_path / "out")])
    with pytest.raises(ValueError, match="model={'depth': 2}; it must be 1"):
        load(tmp_path / "out", model={"depth": 2})
    with pytest.raises(ValueError, match="sampling={'grid': 'optimal'}; it must be another grid"):
        load(tmp_path / "out", sampling={"grid": "optimal"})
    with pytest.raises(ValueError, match="sampling={'plan': 'learned'}; it must be 'sampler'"):
        load(tmp_path / "out", sampling={"plan": "learned"})
    assert load(tmp_path / "out", sampling={"guidance": 2.0}).run.sampling.guidance == 2.0


def test_the_card_says_what_hubs_and_people_ask_for(made, tmp_path):
    run = made("square")
    table = {"rows": [{"steps": 1}, {"steps": 4}], "seeds": [0, 1, 2], "step": 5}
    (run / "any_step.json").write_text(json.dumps(table))
    (run / "any_step.md").write_text("| steps | Fréchet |\n| 1 | 0.383 |\n")
    (run / "any_step_samples.png").write_bytes((run / "samples" / "samples_00000001.png").read_bytes())
    try:
        convert.main(["export", str(run), str(tmp_path / "insects")])
    finally:
        for name in ("any_step.json", "any_step.md", "any_step_samples.png"):
            (run / name).unlink()
    card = (tmp_path / "insects" / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    fields = yaml.safe_load(head)
    assert fields["library_name"] == "tim_jax" and fields["license"] == "other"
    assert fields["pipeline_tag"] == "unconditional-image-generation" and "jax" in fields["tags"]
    for said in (
        "# insects", "![Samples](samples.png)", "tim_jax.load('insects')", "| 1 | 0.383 |", "2 cat, domestic",
        "tim-jax evaluate --workdir=WORKDIR --steps=1,4 --seeds=3", "those of training step 5, not of these weights",
        "| `model.width` | `16` |", "arXiv:2509.04394",
    ):  # fmt: skip
        assert said in body, said
    assert "somebody" not in card and str(run.parent) not in card and "TODO" not in card
    code = re.search(r"```python\n(.*?)```", body, re.DOTALL)[1]
    compile(code, "card", "exec")


REFUSED = [
    (["--which=slow"], "--which=slow: is called --ema now: --ema=slow"),
    (["--ema=fast"], "--ema is 'fast'; it must be one of online, slow"),
    (["--private"], "--private: is about a repository"),
    (["--upload=cats"], "REPOSITORY is 'cats'; it must be the owner and the name"),
    (["--upload=me/../x"], "REPOSITORY is 'me/../x'"),
]


@pytest.mark.parametrize("arguments, message", REFUSED)
def test_what_cannot_be_exported_is_one_line_and_nothing_is_written(made, tmp_path, arguments, message, capsys):
    line = ["export", str(made("square")), str(tmp_path / "out"), *arguments]
    assert message in workdirs.told(convert.main, line, capsys)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_imported_is_one_line(made, tmp_path, capsys):
    run = made("square")
    (tmp_path / "empty").mkdir()
    for given, message in (
        (tmp_path / "empty", "no folder with model.safetensors"),
        (run, "no folder with model.safetensors"),
        (tmp_path / "gone", "no folder with model.safetensors"),
    ):
        assert message in workdirs.told(convert.main, ["import", str(given), str(tmp_path / "back")], capsys)
    assert "must be a folder that export wrote" in workdirs.told(convert.main, ["upload", str(run), "me/cats"], capsys)


@pytest.mark.parametrize("name", RUNS)
def test_what_the_published_code_cannot_do_is_told_before_training(name):
    configuration, changes, missing = RUNS[name]
    note = published.note(build(load_config(configuration, changes)))
    assert bool(note) == bool(missing) and all(f"model.{key} is" in note for key in missing) and "\n" not in note


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on this machine, which the package knows as its own."""
    with hub_server.serving() as found:
        for name, value in (("HF_ENDPOINT", found.address), ("HF_HOME", str(tmp_path / "hf")), ("NO_PROXY", "*")):
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
            monkeypatch.delitem(sys.modules, name)  # it reads its settings when it is imported
        yield found
        for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
            del sys.modules[name]


@pytest.mark.nightly
def test_a_model_goes_to_the_hub_and_comes_back(hub, made, tmp_path, monkeypatch, capsys):
    run, out = made("square"), tmp_path / "out"
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        convert.main(["export", str(run), str(out), "--to=torch", "--upload=me/insects"])
    assert stop.value.code == 2
    assert "cannot be uploaded (Client error '401" in capsys.readouterr().err and out.is_dir()
    monkeypatch.setenv("HF_TOKEN", "of-the-owner")
    convert.main(["upload", str(out), "hf://me/insects", "--private"])
    assert hub.private == {"me/insects": True}
    assert hub.files["me/insects"] == {file.name: file.read_bytes() for file in out.iterdir()}
    assert b"hf://me/insects" in hub.files["me/insects"]["README.md"]
    monkeypatch.delenv("HF_TOKEN")
    convert.main(["import", "hf://me/insects", str(tmp_path / "back")])
    for key, array in parameters(run).items():
        assert array.tobytes() == parameters(tmp_path / "back")[key].tobytes(), key
    assert load("hf://me/insects").classes == tuple(CLASSES)
    assert not any(b"of-the-owner" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_without_the_package_nothing_is_exported(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    told = workdirs.told(convert.main, ["export", str(made("square")), str(tmp_path / "x"), "--upload=me/cats"], capsys)
    assert "hf://me/cats: needs the package huggingface_hub" in told and not list(tmp_path.iterdir())


def test_what_the_api_is_asked_for(made, tmp_path, monkeypatch, capsys):
    """A stand-in that records: one repository, one folder, no token."""
    asked = []

    class Api:
        def __getattr__(self, name):
            return lambda *args, **more: asked.append((name, args, more)) or "https://hub/me/cats"

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(HfApi=Api))
    convert.main(["export", str(made("square")), str(tmp_path / "out"), "--upload=me/cats"])
    assert "https://hub/me/cats; tim_jax.load('hf://me/cats') loads it" in capsys.readouterr().out
    (_, created, how), (_, _, upload) = asked
    assert created == ("me/cats",) and how == {"private": False, "exist_ok": True}
    assert upload["repo_id"] == "me/cats" and upload["folder_path"] == tmp_path / "out"
    convert.main(["push", str(tmp_path / "out"), "hf://me/cats"])
    assert asked[2:] == asked[:2]


def test_a_check_tells_it_before_it_takes_its_step(monkeypatch, capsys):
    class Begins(Exception):
        pass

    def begin(*_):
        raise Begins

    monkeypatch.setattr(training, "made_up_batch", begin)
    for name in ("native", "square"):
        configuration, changes, missing = RUNS[name]
        with pytest.raises(Begins):
            training.check(build(load_config(configuration, changes)))
        told = capsys.readouterr().out
        assert told.count("note: the published code will not be able to use an export of this run") == len(missing)
