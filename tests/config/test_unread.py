"""Keys that a command of a trained run does not read: they are refused, and it is true that it does not read them."""

import dataclasses
import importlib

import pytest

import tim_jax
from tests.helpers.workdirs import TINY, one_device, told, workdir
from tim_jax.__main__ import COMMANDS, module_of
from tim_jax.config import build as building
from tim_jax.config import keys
from tim_jax.config.sections import SECTIONS
from tim_jax.evaluation.settings import EvaluationSettings, LikelihoodSettings, PeriodicEvaluation
from tim_jax.training.settings import CheckpointSettings, StartSettings, TrainingSettings
from tim_jax.transitions.sampling.settings import Sampling
from tim_jax.transitions.sampling.steering import Steering

SMALL = TINY | {"data.height": "8", "data.width": "8"}
OF_A_RUN = ("sample", "evaluate", "search", "prefer", "diagnose", "grid", "pairs", "report")
# What each command is given to do a little of its work; {out} is a new folder.
WORK = {
    "sample": ["--steps=1", "--count=2", "--out={out}"],
    "evaluate": ["--steps=1", "--seeds=1", "--count=8", "--nearest=2", "--out={out}"],
    "search": ["--steps=1", "--reward=brightness", "--budgets=1,2", "--count=2", "--methods=best_of", "--out={out}"],
    "prefer": ["--steps=1", "--reward=brightness", "--pairs=2", "--out={out}"],
    "diagnose": ["--examples=2", "--nodes=2", "--epsilons=0.1", "--out={out}"],
    "grid": ["--steps=1,2", "--times=4", "--count=2"],
    "pairs": ["--examples=2", "--steps=1", "--out={out}"],
    "report": ["--samples=2", "--steps=1", "--samplers=flow_map", "--out={out}/page.html"],
}
WATCHED = {
    "checkpoint": CheckpointSettings, "evaluation": EvaluationSettings, "evaluation.likelihood": LikelihoodSettings,
    "evaluation.periodic": PeriodicEvaluation, "sampling": Sampling, "sampling.steering": Steering,
    "start": StartSettings, "training": TrainingSettings,
}  # fmt: skip
GROUPS = {"evaluation.likelihood", "evaluation.periodic", "sampling.steering"}


def unread(name):
    return importlib.import_module(module_of(name)).parser().unread


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return workdir(tmp_path_factory.mktemp("unread") / "run", "digits", **SMALL)


def test_commands_of_a_run_say_which_keys_they_do_not_read():
    known = keys.known_keys()
    for name in COMMANDS:
        if name in ("bench", "verify"):  # which change no keys
            continue
        refused = [key for key in known if key in unread(name)]
        assert bool(refused) == (name in OF_A_RUN), name
        for key in (*unread(name).sections, *unread(name).but):
            assert key in known or key in SECTIONS or any(each.startswith(f"{key}.") for each in known), key
    assert "training.steps" in unread("sample") and "training.compilation_cache" not in unread("sample")
    assert "evaluation.labels" in unread("sample") and "evaluation.labels" not in unread("evaluate")
    assert "evaluation.held_out" not in unread("sample"), "which says what is restored"
    assert "sampling.ema" not in unread("diagnose") and "sampling.sampler" in unread("diagnose")
    assert "sampling.steering.scale" not in unread("sample") and "evaluations.labels" not in unread("sample")


@pytest.mark.parametrize("name", OF_A_RUN)
def test_a_key_that_is_not_read_is_refused_in_a_line(name, run, tmp_path, capsys):
    before = sorted(run.rglob("*"))
    arguments = [word.format(out=tmp_path / "out") for word in WORK[name]]
    for key, text in (("training.steps", "9"), ("evaluation.periodic.every", "2"), ("checkpoint.local", "/x")):
        line = told(
            importlib.import_module(module_of(name)).main,
            [f"--workdir={run}", *arguments, f"--config.{key}={text}"],
            capsys,
        )
        command = f"python -m {module_of(name).removesuffix('.__main__')}"
        assert line == f"error: --config.{key} is {text}; it must be left out with {command}, which does not read it"
    assert sorted(run.rglob("*")) == before and not (tmp_path / "out").exists()


def test_python_refuses_them_as_well(run):
    with pytest.raises(ValueError, match=r"^training=\{'steps': …\} is 9; it must be left out with tim_jax.load"):
        tim_jax.load(run, training={"steps": 9})


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_A_RUN)
def test_what_is_refused_is_not_read(name, run, tmp_path, monkeypatch):
    """Every attribute of these settings that a command looks at, once its run is built."""
    seen: set[str] = set()
    watching = [False]

    def unwatched(call):
        def called(*args, **kwargs):
            before, watching[0] = watching[0], False
            try:
                return call(*args, **kwargs)
            finally:
                watching[0] = before

        return called

    def watch(section, kind):
        fields = {field.name for field in dataclasses.fields(kind)}

        def look(self, attribute):
            if watching[0] and attribute in fields:
                seen.add(f"{section}.{attribute}")
            return object.__getattribute__(self, attribute)

        monkeypatch.setattr(kind, "__getattribute__", look, raising=False)

    for section, kind in WATCHED.items():
        watch(section, kind)
    monkeypatch.setattr(dataclasses, "replace", unwatched(dataclasses.replace))  # which copies every field

    def build(*args, **kwargs):
        watching[0] = False
        run = whole(*args, **kwargs)
        watching[0] = True
        return run

    whole, main = building.build, importlib.import_module(module_of(name)).main
    for module in ("tim_jax.config.build", "tim_jax.runs.any_step", "tim_jax.runs.outputs.job", "tim_jax.runs.pairs",
                   "tim_jax.runs.preferences", "tim_jax.runs.search_curves", "tim_jax.report.drawing"):  # fmt: skip
        monkeypatch.setattr(importlib.import_module(module), "build", build)
    with one_device():
        main([f"--workdir={run}", *(word.format(out=tmp_path / "out") for word in WORK[name])])
    refused = unread(name)
    assert seen and not [key for key in seen - GROUPS if key in refused], seen
