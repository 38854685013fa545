import os
import pathlib
import subprocess
import sys
import zipfile

import jax
import pytest

from tim_jax.config import loading
from tim_jax.config.build import build
from tim_jax.training import names, warm_start
from tim_jax.transitions.objectives.table import OBJECTIVES

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ("objectives", "distillation", "preferences")
BY_OBJECTIVE = sorted(path for folder in FOLDERS for path in (ROOT / "configs" / folder).glob("*.py"))
OF_PAIRS = ("distillation/reflow", "distillation/instaflow", "distillation/slimflow")
STARTED = ("objectives/twin_flow",)  # from a trained model, of which they learn nothing further
OTHER_NETWORKS = ("distillation/velocity_refiner", "distillation/slimflow")  # than the teacher's
FROM_STUDENTS = {
    "distillation/instaflow": "runs/reflow",
    "distillation/ayf_adversarial": "runs/ayf_eulerian_distilled",
    "distillation/ctm_adversarial": "runs/ctm_distilled",
    "preferences/digits_reward": "runs/digits_tiny",
}


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """An installed package with two configurations, seen from another working directory."""
    folder = tmp_path / "site" / "tim_jax" / "configs"
    folder.mkdir(parents=True)
    (folder / "digits.py").write_text("def get_config():\n    return 'digits'\n")
    (folder / "imagenet256_b.py").write_text("def get_config():\n    return 'imagenet'\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(loading, "_PACKAGE", folder.parent)
    monkeypatch.chdir(elsewhere)
    return folder


@pytest.mark.parametrize("name", ["configs/digits.py", "./configs/digits.py", "digits.py", "digits", "configs/digits"])
def test_a_configuration_is_found_by_name(configs, name):
    assert loading.find(name) == configs / "digits.py"


def test_an_absolute_path_is_itself(configs, tmp_path):
    mine = tmp_path / "mine.py"
    mine.touch()
    assert loading.find(str(mine)) == mine


def test_a_file_in_the_working_directory_comes_first(configs):
    local = pathlib.Path("configs", "digits.py")
    local.parent.mkdir()
    local.touch()
    assert loading.find("configs/digits.py") == local.resolve()


@pytest.mark.parametrize(
    "name, hint", [("digit", "digits"), ("configs/imagenet_b.py", "imagenet256_b"), ("/nowhere/digits.py", "digits")]
)
def test_an_unknown_name_is_refused_with_the_nearest(configs, name, hint):
    with pytest.raises(ValueError) as error:
        loading.find(name)
    message = str(error.value)
    assert name in message and hint in message and "\n" not in message


def test_load_runs_the_file(configs):
    assert loading.load("imagenet256_b").get_config() == "imagenet"


def test_the_checkout_is_found_without_an_install(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert loading.find("base") == ROOT / "configs" / "base.py"


@pytest.mark.parametrize("name", [f"{path.parent.stem}/{path.stem}" for path in BY_OBJECTIVE])
def test_a_configuration_of_an_objective_can_be_built(name, tmp_path, monkeypatch):
    """Also where neither teacher nor pairs are."""
    module = loading.load(name)
    monkeypatch.chdir(tmp_path)
    run = build(module.get_config(), jax.devices()[:1])
    distils = name.startswith("distillation/")
    teacher = loading.load("digits_teacher" if distils else "digits_flow_matching")
    assert f"--config=configs/{name}.py" in module.__doc__
    starts = distils and name not in OTHER_NETWORKS or name in STARTED or name.startswith("preferences/")
    assert run.config.start.checkpoint == (FROM_STUDENTS.get(name, teacher.WORKDIR) if starts else "")
    learns = run.trainer.step.objective.teachers
    compares = name == "preferences/flow_dpo"  # with what it starts from
    assert learns == (("teacher",) if distils and name not in OF_PAIRS or compares else ())
    if starts:  # the network of the teacher, and perhaps heads
        begins = loading.load("digits_tiny") if name == "preferences/digits_reward" else teacher
        own = build(begins.get_config(), jax.devices()[:1]).trainer.abstract_online
        here, there = (names.by_name(tree) for tree in (run.trainer.abstract_online, own))
        shapes = {name: leaf.shape for name, leaf in here.items()}, {name: leaf.shape for name, leaf in there.items()}
        assert len(warm_start.common(*shapes, run.config.start.reinitialise)) == len(there)


def test_every_ema_has_its_decay_before_the_end():
    for path in (path for path in (ROOT / "configs").rglob("*.py") if path.stem != "base"):
        module = loading.load(str(path))
        config = module.get_config() if hasattr(module, "get_config") else module.get_ablation().base
        for name, decay in config.ema.items() if config.optimizer.ema_warmup else ():
            n = config.training.steps
            assert (1 + n) / (10 + n) > decay, (path.name, name)


def test_every_objective_has_its_configuration():
    found = {loading.load(f"{path.parent.stem}/{path.stem}").get_config().objective.name for path in BY_OBJECTIVE}
    assert found == OBJECTIVES.keys()


@pytest.mark.slow
def test_an_installed_wheel_carries_every_configuration(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", f"--wheel-dir={tmp_path}", str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("tim_jax-*.whl")
    assets = {str(path.relative_to(ROOT)) for path in (ROOT / "tim_jax" / "report" / "assets").iterdir()}
    assert len(assets) > 4 and assets <= set(zipfile.ZipFile(wheel).namelist()), "what a report is made of"
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", f"--target={site}", str(wheel)], check=True)

    code = "import sys, tim_jax.config.loading as c; print(*[c.find(name) for name in sys.argv[1:]], sep='\\n')"
    names = sorted(path.name for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")
    assert names
    environment = {**os.environ, "PYTHONPATH": str(site)}
    found = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    ).stdout.split()
    assert found == [str(site / "tim_jax" / "configs" / name) for name in names]
