"""A file of one's own that adds to the tables: it trains, samples, evaluates and resumes, and is run when it may be."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import cloudpickle
import pytest

import tim_jax
from tests.helpers.configs import TINY_NETWORK, flags
from tests.helpers.workdirs import one_device, told
from tim_jax import convert, evaluate, sample, train
from tim_jax.config import keys, plugins, values
from tim_jax.config.build import build
from tim_jax.config.command_line import load_config
from tim_jax.config.page import page
from tim_jax.data import open_source

PLUGIN = '''
"""An objective with a knob of its own, a transport, a sampler, a step grid, a source and a metric."""

import dataclasses

import jax.numpy as jnp

from tim_jax.data import SOURCES
from tim_jax.data.sources.digits import open_digits
from tim_jax.evaluation import METRICS
from tim_jax.networks import NETWORKS, TiM
from tim_jax.transitions import GRIDS, OBJECTIVES, SAMPLERS, TRANSPORTS, Objective, Times
from tim_jax.transitions.perceptual import PERCEPTUAL
from tim_jax.transitions.rewards import REWARDS


@dataclasses.dataclass(frozen=True)
class Scaled(Objective):
    """TiM's loss times a number."""

    scale: float = 2.0  # of the loss

    def loss(self, *args, **kwargs):
        losses, metrics = super().loss(*args, **kwargs)
        return self.scale * losses, metrics


class OwnTiM(TiM):
    """A network of one's own."""


OBJECTIVES["scaled"] = lambda transport: Scaled(transport, Times(share_equal=0.75))
TRANSPORTS["straight"] = lambda: dataclasses.replace(TRANSPORTS["ot_fm"](), name="straight")
SAMPLERS["own"] = dataclasses.replace(SAMPLERS["euler"])
GRIDS["own"] = lambda transport, start, u, shift: GRIDS["uniform"](transport, start, u**2, shift)
SOURCES["own_digits"] = open_digits
NETWORKS["own_tim"] = OwnTiM
METRICS["own_fd"] = METRICS["frechet"]._replace()
PERCEPTUAL["own_features"] = lambda x: [x**2]
REWARDS["own_reward"] = lambda images, condition: images.mean((1, 2, 3)) * condition["label"]
'''
SMALL = {
    **TINY_NETWORK, "model.patch_size": "4", "data.batch_size": "8", "training.steps": "2", "training.log_every": "1",
    "training.sample_every": "0", "optimizer.warmup_steps": "0", "sampling.ema": "online",
    "evaluation.num_samples": "20", "evaluation.max_images": "40",
}  # fmt: skip
OWN = {
    "objective.name": "scaled", "objective.scale": "3.0", "transport.name": "straight", "data.source": "own_digits",
    "sampling.sampler": "own", "sampling.grid": "own", "model.network": "own_tim",
    "objective.perceptual.weight": "0.5", "objective.perceptual.features": "own_features",
    "transport.prediction": "x", "objective.reward.weight": "0.1", "objective.reward.name": "own_reward",
}  # fmt: skip


def forget():
    """Takes everything that plugins have added out of the tables."""
    for plugin in plugins.LOADED.values():
        for table, name in plugin.added:
            plugins.TABLES[table].pop(name, None)
    plugins.LOADED.clear()
    plugins._renew()


@pytest.fixture(autouse=True)
def alone():
    """No test leaves a plugin to others."""
    yield
    forget()


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "code" / "mine.py"
    path.parent.mkdir()
    path.write_text(PLUGIN)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_directory):
    """(file, workdir) of a run with everything of its own, and the arguments that make it."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "mine.py").write_text(PLUGIN)
    given = SMALL | OWN | {"loader.directory": str(data_directory), "plugin": str(folder / "mine.py")}
    arguments = ["--config=digits", f"--workdir={folder / 'run'}", *flags(given)]
    with one_device():
        train.main(arguments)
    forget()
    return folder / "mine.py", folder / "run", arguments


@pytest.fixture
def run(trained, tmp_path):
    """The same, as a copy that a test may change."""
    file, workdir, arguments = trained
    shutil.copytree(file.parent, tmp_path / "copy")
    text = json.dumps(json.loads((tmp_path / "copy" / "run" / "config.json").read_text()))
    (tmp_path / "copy" / "run" / "config.json").write_text(text.replace(str(file.parent), str(tmp_path / "copy")))
    new = [one.replace(str(file.parent), str(tmp_path / "copy")) for one in arguments]
    return tmp_path / "copy" / "mine.py", tmp_path / "copy" / "run", new


@pytest.mark.nightly
def test_an_export_carries_its_code_and_runs_it_only_when_asked(run, tmp_path, capsys):
    _, workdir, _ = run
    out, back = tmp_path / "out", tmp_path / "back"
    copy = out / "plugins" / "mine.py"
    with one_device():
        convert.main(["export", str(workdir), str(out)])
        assert copy.read_text() == PLUGIN and "plugins/mine.py" in (out / "README.md").read_text()
        forget()
        capsys.readouterr()
        line = told(convert.main, ["import", str(out), str(back)], capsys)
        assert f"--config.plugin={copy} runs the recorded copy" in line and not plugins.LOADED and not back.exists()
        assert tim_jax.load(out, plugin=copy).run.trainer.step.objective.scale == 3.0
        forget()
        convert.main(["import", str(out), str(back), f"--config.plugin={copy}"])
    assert (back / "plugins" / "mine.py").read_text() == PLUGIN


@pytest.mark.nightly
def test_the_workdir_alone_is_measured_also_by_a_metric_of_its_own(run):
    _, workdir, _ = run
    with one_device():
        evaluate.main([f"--workdir={workdir}", "--steps=1", "--seeds=1", "--nearest=0", "--count=20"])
    assert "own_fd" in (workdir / "any_step.json").read_text()


@pytest.mark.slow
def test_the_workdir_alone_samples_and_resumes(run, capsys):
    file, workdir, arguments = run
    recorded = json.loads((workdir / "config.json").read_text())
    assert recorded["plugin"] == [f"{file}#sha256={hashlib.sha256(file.read_bytes()).hexdigest()}"]
    assert recorded["objective"]["scale"] == 3.0
    assert (workdir / "plugins" / "mine.py").read_text() == PLUGIN
    with one_device():
        sample.main([f"--workdir={workdir}", "--steps=2", "--labels=3"])
        forget()
        tim = tim_jax.load(workdir)
        assert (
            type(tim.run.network).__name__ == "OwnTiM"
            and tim.run.trainer.step.objective.scale == 3.0
            and len(tim([1, 2], steps=1)) == 2
        )
        forget()
        file.write_text(PLUGIN.replace("# of the loss", "# a comment, changed"))
        sample.main([f"--workdir={workdir}", "--steps=2", "--labels=3"])
        train.main([*arguments, "--config.training.steps=3"])
    assert (workdir / "checkpoints" / "3").exists()
    assert "trained to step 3" in capsys.readouterr().out


@pytest.mark.nightly
def test_changed_code_is_another_run_and_the_copy_goes_on(run, capsys):
    file, workdir, arguments = run
    copy = workdir / "plugins" / "mine.py"
    file.write_text(PLUGIN.replace("self.scale * losses", "self.scale + losses"))
    with one_device():
        for main, typed in (
            (train.main, [*arguments, "--config.training.steps=3"]),
            (sample.main, [f"--workdir={workdir}"]),
        ):
            error = told(main, typed, capsys)
            assert "plugin is" in error and "has changed" in error and f"--config.plugin={copy}" in error
            forget()
        sample.main([f"--workdir={workdir}", "--steps=1", "--labels=3", f"--config.plugin={copy}"])


def test_code_of_others_is_not_run_from_a_workdir(run, monkeypatch, tmp_path, capsys):
    file, workdir, _ = run
    monkeypatch.setattr(os, "getuid", lambda: file.stat().st_uid + 1)
    with pytest.raises(ValueError, match="belongs to another user: plugin='.*plugins/mine.py' runs"):
        tim_jax.load(workdir)
    file.unlink()
    error = told(sample.main, [f"--workdir={workdir}"], capsys)
    assert "it is not there" in error and "--config.plugin=" in error
    assert not plugins.LOADED and "scaled" not in plugins.TABLES["OBJECTIVES"]
    with one_device():
        assert len(tim_jax.load(workdir, plugin=workdir / "plugins" / "mine.py")([1], steps=1)) == 1


def test_a_plugin_of_a_later_day_adds_a_sampler_to_any_run(run, tmp_path):
    _, workdir, _ = run
    late = tmp_path / "late.py"
    late.write_text("from tim_jax.transitions import SAMPLERS\nSAMPLERS['late'] = SAMPLERS['flow_map']\n")
    with one_device():
        tim = tim_jax.load(workdir, plugin=[str(late)], sampling={"sampler": "late"})
    assert tim.run.sampling.sampler == "late" and len(tim.run.config.plugin) == 2


@pytest.mark.parametrize(
    "text, message",
    [
        ("x = 1\ny = (", "SyntaxError: '(' was never closed (mine.py, line 2)"),
        ("x = 1\n\nundefined\n", "line 3: NameError: name 'undefined' is not defined"),
        (
            "from tim_jax.transitions import OBJECTIVES\n\nOBJECTIVES['tim'] = OBJECTIVES['scm']\n",
            "line 3: OBJECTIVES has 'tim' already; give it another name",
        ),
        ("from tim_jax.transitions import OBJECTIVES\ndel OBJECTIVES['tim']\n", "line 2: OBJECTIVES has lost 'tim'"),
        ("from tim_jax.transitions import OBJECTIVES\nOBJECTIVES['mine'] = lambda t: t.no\n", "line 2: AttributeError"),
        (PLUGIN.replace("scale: float = 2.0", "scale: dict = None"), "objective.scale has the type <class 'dict'>"),
        (b"\xff\xfe", "it must be a Python file"),
        (None, "it must be a Python file (No such file or directory)"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line_and_leaves_the_tables_alone(text, message, mine, capsys, tmp_path):
    before = {name: dict(table) for name, table in plugins.TABLES.items()}
    mine.unlink() if text is None else mine.write_bytes(text if isinstance(text, bytes) else text.encode())
    error = told(train.main, ["--config=digits", f"--workdir={tmp_path / 'run'}", f"--config.plugin={mine}"], capsys)
    assert message in error and "plugin is" in error
    assert plugins.TABLES == before and not plugins.LOADED and not (tmp_path / "run").exists()


def test_names_of_two_files_collide_and_their_keys_come_and_go(mine, tmp_path):
    other = tmp_path / "other.py"
    other.write_text(PLUGIN)
    other.write_text(PLUGIN.replace("scale: float = 2.0", "scale: float = 5.0"))
    with pytest.raises(ValueError, match="'scaled' already; give it another name"):
        load_config("digits", {"plugin": f"{mine},{other}"})
    forget()
    config = load_config("digits", {"plugin": str(mine), **OWN, **SMALL})
    assert build(config).trainer.step.objective.scale == 3.0
    with pytest.raises(ValueError, match="no such key; did you mean config.objective.scale"):
        config.objective.scael = 1.0
        build(config)
    plain = build(load_config("digits", SMALL)).config
    assert "scale" not in plain.objective and plain.plugin == ()
    assert (
        build(load_config("digits", {"plugin": str(other), "objective.name": "scaled"})).trainer.step.objective.scale
        == 5
    )
    forget()
    assert "objective.scale" not in values.types() and "config.objective.scale" not in page()
    with pytest.raises(ValueError, match="objective.scale: no such key"):
        load_config("digits", {"objective.scale": "3.0"})


def test_every_table_is_known():
    assert set(plugins.TABLES) == {
        "OBJECTIVES", "TRANSPORTS", "CONSISTENCIES", "COUPLINGS", "DISTRIBUTIONS", "KERNELS", "SCALES", "SAMPLERS",
        "STOCHASTIC", "GRIDS", "NOISE_SCALES", "DIFFUSIONS", "SOURCES", "METRICS", "FEATURES", "NETWORKS",
        "PERCEPTUAL", "REWARDS", "OPERATORS",
    }  # fmt: skip
    assert keys.flatten(plugins.base_config()).keys() - {"ema.slow"} == set(plugins.OWN_KEYS) - {"ema.slow"}


def test_a_source_may_be_a_function(mine, data_directory):
    plugins.load([str(mine)])
    assert len(open_source("own_digits", str(data_directory))) == len(open_source("digits", str(data_directory)))


def test_processes_that_read_examples_get_a_source_of_a_plugin_whole(tmp_path):
    (tmp_path / "thing.py").write_text(
        "from tim_jax.data import SOURCES\n\n\nclass Thing:\n    def __init__(self, at):\n        self.value = at\n\n\n"
        "SOURCES['thing'] = Thing\n"
    )
    plugins.load([str(tmp_path / "thing.py")])
    (tmp_path / "pickled").write_bytes(cloudpickle.dumps(plugins.TABLES["SOURCES"]["thing"](3)))
    program = f"import cloudpickle; print(cloudpickle.loads(open({str(tmp_path / 'pickled')!r}, 'rb').read()).value)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "3\n", done.stderr
