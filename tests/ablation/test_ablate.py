"""Ablations: what a file may say, and steps of equal cost."""

import dataclasses
import json
import pathlib

import pytest
from etils import epath

from tests.helpers.ablations import arguments, fails, tiny, write_file
from tim_jax import ablate
from tim_jax.ablation import Ablation, budget, job, settings
from tim_jax.config import loading, renames
from tim_jax.config.build import build
from tim_jax.system import timing

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHIPPED = sorted(path.stem for path in (ROOT / "configs" / "ablations").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_every_variant_of_a_shipped_set_can_be_built(name):
    ablation = settings.load(f"ablations/{name}", {})
    module = loading.load(f"ablations/{name}")
    assert f"--config=configs/ablations/{name}.py" in module.__doc__ and "Published" in module.__doc__
    assert ablation.equal == ("flops" if name.startswith("any_step") else "time") and len(ablation.variants) > 1
    assert ablation.seeds == (1 if "rates" in name else 3)
    definitions = [json.dumps(ablation.definition(variant)) for variant in ablation.variants]
    assert len(set(definitions)) == len(definitions), "two variants are the same"
    for variant in ablation.variants:
        build(ablation.config(variant))
        build(ablation.config(variant, seed=2, steps=7))


def test_the_published_ablations_are_there():
    assert SHIPPED == [
        "any_step", "any_step_emoji", "any_step_emoji_rates", "any_step_rates",
        "architecture", "derivative", "distillation", "objectives", "predictions", "shares", "transports", "weights",
    ]  # fmt: skip


@pytest.mark.parametrize("data", ["", "_emoji"])
def test_the_any_step_comparison_differs_between_data_in_learning_rates_alone(data):
    here, digits = settings.load(f"ablations/any_step{data}", {}), settings.load("ablations/any_step", {})
    rates, rate = settings.load(f"ablations/any_step{data}_rates", {}), "optimizer.learning_rate"
    for name, keys in digits.variants.items():
        others = {key: value for key, value in keys.items() if key != rate}
        assert {key: value for key, value in here.variants[name].items() if key != rate} == others
        swept = [keys for variant, keys in rates.variants.items() if variant.rpartition("_")[0] == name]
        assert len({keys[rate] for keys in swept}) == 4 and all(keys | others == keys for keys in swept)
        assert here.config(name).optimizer.learning_rate in {keys[rate] for keys in swept}
    assert here.sampler_steps == rates.sampler_steps == (1, 2, 4, 8, 16, 32, 64)


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"variants": {}}, ["variants"]),
        ({"variants": {"A-1": {}}}, ["A-1", "letters"]),
        ({"variants": {"a": {"objective.directio": "none"}}}, ["'a'", "objective.directio", "objective.direction"]),
        ({"variants": {"a": {"optimizer.learning_rate": "fast"}}}, ["'a'", "learning_rate", "fast", "float"]),
        ({"variants": {"a": {"objective.name": "tin"}}}, ["objective.name", "tin", "tim"]),
        ({"variants": {"a": {"seed": 3}}}, ["'a'", "seed"]),
        ({"variants": {"a": {"training.steps": 3}}, "equal": "time"}, ["'a'", "training.steps", "time"]),
        ({"equal": "money"}, ["equal", "money", "flops"]),
        ({"seeds": 0}, ["seeds", "0"]),
        ({"sampler_steps": (0, 1)}, ["sampler_steps", "0"]),
        ({"base": {}}, ["base", "dict"]),
        ({"baselines": {"The-1": "runs"}}, ["baseline 'The-1'", "letters"]),
        ({"baselines": {"a": "runs"}}, ["baseline 'a'", "variant"]),
        ({"baselines": {"b": ""}}, ["baseline 'b'", "workdir"]),
        ({"beside": {"b": "runs"}}, ["beside", "baselines"]),
    ],
)
def test_what_cannot_be_is_named(fields, named):
    with pytest.raises(ValueError) as error:
        ablation = Ablation(**{"base": tiny(), "variants": {"a": {}}} | fields)
        ablation.check()
        ablation.definition("a")
    for word in named:
        assert word in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words, named",
    [
        (["--only=b"], ["--only", "'b'", "a"]),
        (["--only=a/seed_3"], ["a/seed_3", "a/seed_0"]),
        (["--only=a,, b"], ["--only", "'b'", "did you mean a?", "there are a"]),
        (["--only= ,"], ["--only", "must name", "there are a"]),
        (["--seeds=0"], ["seeds", "0"]),
        (["--equal=all"], ["equal", "all", "time"]),
        (["--report"], ["holds no ablation"]),
        (["--launch=pbs"], ["--launch", "pbs", "slurm"]),
        (["--launch=slurm", "--equal=time"], ["--launch", "time", "--plan"]),
        (["--config.model.heads=5"], ["variant 'a'", "heads", "5"]),
        (["--config.evaluation.held_out=none"], ["variant 'a'", "none"]),
        (["--confg=x"], ["--confg", "--config"]),
    ],
)
def test_a_wrong_command_is_named_and_nothing_is_touched(words, named, tmp_path, capsys):
    write_file(tmp_path, {"a": {}})
    error = fails([*arguments(tmp_path), *words], capsys)
    for word in named:
        assert word in error, error
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_what_only_leaves_out_is_not_looked_at(tmp_path, capsys):
    """Of the others the reference alone, where steps are matched to it, and not a step is compiled."""
    variants = {"good": {}, "other": {"model.depth": 2, "model.encoder_depth": 2}, "broken": {"model.heads": 5}}
    write_file(tmp_path, variants, equal="flops")
    words = [*arguments(tmp_path), "--plan"]
    assert "variant 'broken': model.heads" in fails(words, capsys)
    ablate.main([*words, "--only=other"])
    assert set(budget.read(epath.Path(tmp_path / "runs"))["variants"]) == {"good", "other"}
    words[1] = f"--workdir={tmp_path / 'others'}"
    write_file(tmp_path, {"broken": variants["broken"], "good": {}}, equal="flops")
    assert "variant 'broken': model.heads" in fails([*words, "--only=good"], capsys)
    write_file(tmp_path, {"broken": variants["broken"], "good": {}}, equal="steps")
    ablate.main([*words, "--only=good"])


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_built(tmp_path, capsys, monkeypatch):
    write_file(tmp_path, {"a": {}})
    (tmp_path / "runs").write_text("a file")
    monkeypatch.setattr(job, "build", None)
    assert "--workdir is " in fails(arguments(tmp_path), capsys)


@pytest.mark.parametrize(
    "waiting, spent, count, said",
    [
        ([{"steps": 100, "step_flops": 5}] * 2, [], 2, ""),  # equal="flops" times nothing
        ([{"steps": 100}] * 2, [], 2, ""),
        ([{}], [], 1, ""),  # a baseline
        ([{"steps": 100, "step_seconds": 0.25}] * 2, [], 2, ", more than 50 s left"),
        ([{"steps": 100, "step_seconds": 0.25}, {}], [], 2, ", more than 25 s left"),
        ([{"steps": 100, "step_flops": 5}] * 3, [20.0, 38.0], 3, ", about 87 s left"),
        ([{"steps": 9000, "step_seconds": 1.0}] * 3, [60.0], 3, ", about 3 min left"),
    ],
)
def test_what_is_said_of_the_time_that_is_left(waiting, spent, count, said):
    assert job.time_left(waiting, spent, count) == said


def test_results_that_were_measured_otherwise_are_not_mixed(tmp_path, capsys):
    write_file(tmp_path, {"a": {}, "b": {"model.depth": 2, "model.encoder_depth": 2}})
    place = tmp_path / "runs" / "a" / "seed_0"
    place.mkdir(parents=True)
    reference = {"size": "8x8x1", "preprocessing": "none", "features": "pixels"}
    (place / "result.json").write_text(json.dumps({"table": {"reference": reference}}))
    error = fails([*arguments(tmp_path), "--only=b"], capsys)
    assert "was measured with preprocessing 'none', and now it is '8 bits'" in error and "result.json" in error


def test_a_file_that_gives_no_ablation_is_refused(tmp_path, capsys):
    assert "get_ablation" in fails(["--config=digits", f"--workdir={tmp_path / 'runs'}"], capsys)
    (tmp_path / "tiny.py").write_text("def get_ablation():\n    return 3\n")
    assert "int" in fails(arguments(tmp_path), capsys)


def test_runs_of_one_seed_come_before_the_next():
    ablation = Ablation(tiny(), {"a": {}, "b": {}}, equal="steps", seeds=2)
    names = ["a/seed_0", "b/seed_0", "a/seed_1", "b/seed_1"]
    assert [str(member) for member in job.chosen(ablation, None)] == names
    assert [str(member) for member in job.chosen(ablation, "b,a/seed_1")] == [names[1], names[2], names[3]]
    assert [ablation.config("a", seed).seed for seed in (0, 1)] == [0, 1]
    ablation = dataclasses.replace(ablation, baselines={"c": "runs/c"})
    assert [str(member) for member in job.chosen(ablation, "c,a/seed_1")] == ["c/seed_0", "a/seed_1", "c/seed_1"]


# How many steps.


def test_a_schedule_keeps_its_shape():
    base = tiny(training__steps="100", optimizer__decay_steps="90", optimizer__warmup_steps="10")
    changes = {"objective.name": "scm", "objective.tangent.warmup_steps": 50, "transport.name": "trigflow"}
    base.objective.direction = base.objective.weight.kernel = base.objective.velocity = None
    base.objective.adaptive.power = base.times.share_equal = base.times.share_min = None
    config = Ablation(base, {"a": changes}).config("a", steps=250)
    values = config.training.steps, config.optimizer.decay_steps, config.optimizer.warmup_steps
    assert (*values, config.objective.tangent.warmup_steps) == (250, 225, 25, 125)
    assert base.training.steps == 100
    short = Ablation(base, {"a": {}}).config("a", steps=1)
    assert short.optimizer.decay_steps > short.optimizer.warmup_steps


def test_equal_time_is_the_ratio_of_medians(tmp_path, monkeypatch):
    seconds = {"reference": 0.2, "own": 0.1}
    timed = lambda calls, repeats: {name: timing.Timing(seconds.get(name, 0.2), 0.01) for name in calls}  # noqa: E731
    monkeypatch.setattr(timing, "interleaved", timed)
    monkeypatch.setattr(budget, "stepper", lambda run: None)
    ablation = Ablation(tiny(), {"a": {}, "b": {"objective.derivative": "dde"}}, equal="time")
    planned = budget.make(ablation, epath.Path(tmp_path), ["b"], lambda line: None)["variants"]
    assert {name: (entry["steps"], entry["cost"]) for name, entry in planned.items()} == {"a": (4, 1.0), "b": (8, 0.5)}
    assert planned["b"]["step_seconds"] == pytest.approx(0.1 / budget.STEPS)
    monkeypatch.setattr(budget, "by_time", None)  # nothing is measured twice
    assert budget.make(ablation, epath.Path(tmp_path), ["a", "b"], lambda line: None)["variants"] == planned


def test_equal_operations_are_those_of_the_model(tmp_path):
    variants = {"a": {}, "b": {"times.share_equal": 1.0, "times.share_min": 0.0, "objective.velocity": "data"}}
    ablation = Ablation(tiny(training__steps="1000"), variants, equal="flops")
    planned = budget.make(ablation, epath.Path(tmp_path), ["a", "b"], lambda line: None)["variants"]
    spent = {name: entry["steps"] * entry["step_flops"] for name, entry in planned.items()}
    assert planned["a"]["steps"] == 1000 < planned["b"]["steps"]
    assert spent["b"] == pytest.approx(spent["a"], rel=1e-3)


def test_what_was_planned_may_not_change(tmp_path, capsys):
    folder = epath.Path(tmp_path)
    one = Ablation(tiny(), {"a": {}, "b": {"objective.epsilon": 0.1, "objective.derivative": "dde"}}, equal="steps")
    budget.make(one, folder, ["a", "b"], lambda line: None)
    budget.check(one, budget.read(folder), folder)
    more = {"a": {}, "c": {"model.depth": 2}}
    budget.check(Ablation(tiny(), more, equal="steps"), budget.read(folder), folder)
    harmless = tiny(training__log_every="7", evaluation__batch_size="3", model__attention="xla")
    budget.check(Ablation(harmless, one.variants, equal="steps"), budget.read(folder), folder)
    for changed, word in (
        (Ablation(tiny(), one.variants | {"b": {}}, equal="steps"), "objective.derivative is 'jvp'"),
        (Ablation(tiny(training__steps="5"), one.variants, equal="steps"), "training.steps is 5"),
        (Ablation(tiny(evaluation__num_samples="17"), one.variants, equal="steps"), "evaluation.num_samples is 17"),
        (Ablation(tiny(), one.variants, equal="steps", sampler_steps=(1,)), "sampler_steps is [1]"),
        (Ablation(tiny(), one.variants, equal="flops"), "equal is 'flops'"),
        (Ablation(tiny(), {"b": one.variants["b"]}, equal="steps"), "reference is 'b'"),
    ):
        with pytest.raises(ValueError, match=word.replace("[", r"\[")):
            budget.check(changed, budget.read(folder), folder)


def test_what_was_planned_by_older_names_is_understood(tmp_path):
    folder, old_names = epath.Path(tmp_path), {new: old for old, new in renames.KEYS.items()}
    variants = {"a": {}, "b": {"objective.name": "mean_flow", "objective.adaptive.power": 0.75}}
    budget.make(Ablation(tiny(), variants, equal="steps"), folder, ["a", "b"], lambda line: None)
    planned = budget.read(folder)
    for about in planned["variants"].values():
        about["definition"] = {old_names.get(key, key): value for key, value in about["definition"].items()}
    assert "objective.adaptive_power" in planned["variants"]["b"]["definition"]
    budget.check(Ablation(tiny(), variants, equal="steps"), planned, folder)
    variants["b"] |= {"objective.adaptive.power": 0.5}
    with pytest.raises(ValueError, match="objective.adaptive.power is 0.5, but .* was planned with 0.75"):
        budget.check(Ablation(tiny(), variants, equal="steps"), planned, folder)
