"""Ablations: what a file may say, steps of equal cost, the table, real runs that fail, are killed and go on."""

import dataclasses
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import yaml
from etils import epath

from tests import made_up
from tests.flags import for_devices
from tim_jax import ablate, config_files
from tim_jax import config as configuration
from tim_jax.ablation import Ablation, plan, report, runs, settings
from tim_jax.ablation.settings import Member
from tim_jax.bench import measure
from tim_jax.bench.faults import state_leaves
from tim_jax.command_line import load_config
from tim_jax.exit_codes import RESTART
from tim_jax.training import checksums, sharding

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHIPPED = sorted(path.stem for path in (ROOT / "configs" / "ablations").glob("*.py"))
TINY = {
    "model.width": "16", "model.depth": "1", "model.heads": "2", "model.bottleneck": "8", "model.encoder_depth": "1",
    "data.batch_size": "16", "optimizer.warmup_steps": "0", "training.steps": "4", "optimizer.decay_steps": "4",
    "evaluation.samples": "16", "checkpoint.every": "4", "training.log_every": "4",
}  # fmt: skip
FILE = """
from tim_jax import config_files
from tim_jax.ablation import Ablation


def get_ablation():
    base = config_files.load("digits").get_config()
    return Ablation(base, {variants}, equal="{equal}", seeds={seeds}, sampler_steps=(1, 2), beside={beside})
"""


def tiny(**more):
    return load_config("digits", TINY | {name.replace("__", "."): value for name, value in more.items()})


def write_file(folder, variants, equal="steps", seeds=1, beside=None):
    path = folder / "tiny.py"
    path.write_text(FILE.format(variants=variants, equal=equal, seeds=seeds, beside=beside or {}))
    return path


def arguments(folder, **more):
    values = TINY | {"loader.directory": folder / "data"} | more
    return [f"--config={folder / 'tiny.py'}", f"--workdir={folder / 'runs'}"] + [
        f"--config.{key}={value}" for key, value in values.items()
    ]


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setattr(sharding.jax, "devices", lambda first=jax.devices()[:1]: first)


def fails(words, capsys):
    with pytest.raises(SystemExit) as stop:
        ablate.main([str(word) for word in words])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and len(error.splitlines()) == 1, error
    return error


# What a file says.


@pytest.mark.parametrize("name", SHIPPED)
def test_every_variant_of_a_shipped_set_can_be_built(name):
    ablation = settings.load(f"ablations/{name}", {})
    module = config_files.load(f"ablations/{name}")
    assert f"--config=configs/ablations/{name}.py" in module.__doc__ and "Published" in module.__doc__
    assert ablation.equal == "time" and ablation.seeds == 3 and len(ablation.variants) > 1
    definitions = [json.dumps(ablation.definition(variant)) for variant in ablation.variants]
    assert len(set(definitions)) == len(definitions), "two variants are the same"
    for variant in ablation.variants:
        configuration.build(ablation.config(variant))
        configuration.build(ablation.config(variant, seed=2, steps=7))


def test_the_published_ablations_are_there():
    assert SHIPPED == ["architecture", "derivative", "distillation", "objectives", "shares", "transports", "weights"]


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
        ({"beside": {"The-1": "runs"}}, ["beside 'The-1'", "letters"]),
        ({"beside": {"a": "runs"}}, ["beside 'a'", "variant"]),
        ({"beside": {"b": ""}}, ["beside 'b'", "workdir"]),
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


def test_a_file_that_gives_no_ablation_is_refused(tmp_path, capsys):
    assert "get_ablation" in fails(["--config=digits", f"--workdir={tmp_path / 'runs'}"], capsys)
    (tmp_path / "tiny.py").write_text("def get_ablation():\n    return 3\n")
    assert "int" in fails(arguments(tmp_path), capsys)


def test_runs_of_one_seed_come_before_the_next():
    ablation = Ablation(tiny(), {"a": {}, "b": {}}, equal="steps", seeds=2)
    names = ["a/seed_0", "b/seed_0", "a/seed_1", "b/seed_1"]
    assert [str(member) for member in ablate.chosen(ablation, "")] == names
    assert [str(member) for member in ablate.chosen(ablation, "b,a/seed_1")] == [names[1], names[2], names[3]]
    assert [ablation.config("a", seed).seed for seed in (0, 1)] == [0, 1]
    ablation = dataclasses.replace(ablation, beside={"c": "runs/c"})
    assert [str(member) for member in ablate.chosen(ablation, "c,a/seed_1")] == ["c/seed_0", "a/seed_1", "c/seed_1"]


# How many steps.


def test_a_schedule_keeps_its_shape():
    base = tiny(training__steps="100", optimizer__decay_steps="90", optimizer__warmup_steps="10")
    changes = {"objective.name": "scm", "objective.tangent.warmup": 50, "transport.name": "trigflow"}
    base.objective.direction = base.objective.weight_kernel = base.objective.velocity = None
    base.objective.adaptive_power = base.times.share_equal = base.times.share_min = None
    config = Ablation(base, {"a": changes}).config("a", steps=250)
    values = config.training.steps, config.optimizer.decay_steps, config.optimizer.warmup_steps
    assert (*values, config.objective.tangent.warmup) == (250, 225, 25, 125)
    assert base.training.steps == 100
    short = Ablation(base, {"a": {}}).config("a", steps=1)
    assert short.optimizer.decay_steps > short.optimizer.warmup_steps


def test_equal_time_is_the_ratio_of_medians(tmp_path, monkeypatch):
    seconds = {"reference": 0.2, "own": 0.1}
    timing = lambda calls, repeats: {name: measure.Timing(seconds.get(name, 0.2), 0.01) for name in calls}  # noqa: E731
    monkeypatch.setattr(measure, "interleaved", timing)
    monkeypatch.setattr(plan, "stepper", lambda run: None)
    ablation = Ablation(tiny(), {"a": {}, "b": {"objective.derivative": "dde"}}, equal="time")
    planned = plan.make(ablation, epath.Path(tmp_path), ["b"], lambda line: None)["variants"]
    assert {name: (entry["steps"], entry["cost"]) for name, entry in planned.items()} == {"a": (4, 1.0), "b": (8, 0.5)}
    assert planned["b"]["step_seconds"] == pytest.approx(0.1 / plan.STEPS)
    monkeypatch.setattr(plan, "by_time", None)  # nothing is measured twice
    assert plan.make(ablation, epath.Path(tmp_path), ["a", "b"], lambda line: None)["variants"] == planned


def test_equal_operations_are_those_of_the_model(tmp_path):
    variants = {"a": {}, "b": {"times.share_equal": 1.0, "times.share_min": 0.0, "objective.velocity": "data"}}
    ablation = Ablation(tiny(training__steps="1000"), variants, equal="flops")
    planned = plan.make(ablation, epath.Path(tmp_path), ["a", "b"], lambda line: None)["variants"]
    spent = {name: entry["steps"] * entry["step_flops"] for name, entry in planned.items()}
    assert planned["a"]["steps"] == 1000 < planned["b"]["steps"]
    assert spent["b"] == pytest.approx(spent["a"], rel=1e-3)


def test_what_was_planned_may_not_change(tmp_path, capsys):
    folder = epath.Path(tmp_path)
    one = Ablation(tiny(), {"a": {}, "b": {"objective.epsilon": 0.1, "objective.derivative": "dde"}}, equal="steps")
    plan.make(one, folder, ["a", "b"], lambda line: None)
    plan.check(one, plan.read(folder), folder)
    more = {"a": {}, "c": {"model.depth": 2}}
    plan.check(Ablation(tiny(), more, equal="steps"), plan.read(folder), folder)
    harmless = tiny(training__log_every="7", evaluation__batch_size="3", model__attention="xla")
    plan.check(Ablation(harmless, one.variants, equal="steps"), plan.read(folder), folder)
    for changed, word in (
        (Ablation(tiny(), one.variants | {"b": {}}, equal="steps"), "objective.derivative is 'jvp'"),
        (Ablation(tiny(training__steps="5"), one.variants, equal="steps"), "training.steps is 5"),
        (Ablation(tiny(evaluation__samples="17"), one.variants, equal="steps"), "evaluation.samples is 17"),
        (Ablation(tiny(), one.variants, equal="steps", sampler_steps=(1,)), "sampler_steps is [1]"),
        (Ablation(tiny(), one.variants, equal="flops"), "equal is 'flops'"),
        (Ablation(tiny(), {"b": one.variants["b"]}, equal="steps"), "reference is 'b'"),
    ):
        with pytest.raises(ValueError, match=word.replace("[", r"\[")):
            plan.check(changed, plan.read(folder), folder)


# The table.


def result(rng, steps=(1, 4)):
    rows = []
    for s in steps:
        row = {"steps": s, "nfe": s}
        for name in ("frechet", "frechet_held_out"):
            value = float(rng.uniform(1, 2))
            row |= {name: value, f"{name}_spread": 0.0, f"{name}_seeds": [value]}
        rows.append(row)
    floor = {"frechet": float(rng.uniform()), "frechet_held_out": float(rng.uniform())}
    table = {"rows": rows, "floor": floor, "samples": 16}
    return {"steps": 4, "train_seconds": float(rng.uniform(1, 9)), "seconds": 1.0, "table": table}


def test_the_table_holds_what_numpy_says(tmp_path):
    ablation = Ablation(tiny(), {"a": {}, "b": {"model.depth": 2}, "c": {"model.depth": 3}}, equal="steps")
    folder, rng = epath.Path(tmp_path), np.random.default_rng(0)
    plan.make(ablation, folder, list(ablation.variants), lambda line: None)
    given = {}
    for member in ablation.members():
        if member == Member("b", 1):
            runs.write(folder / str(member), {"failure": "ValueError: no luck"})
        elif member != Member("b", 2) and member.variant != "c":
            given[member] = result(rng)
            runs.write(folder / str(member), given[member])

    text = report.write(ablation, folder, "mine")
    found = json.loads((folder / "ablation.json").read_text())
    a, b, c = (found["variants"][name] for name in "abc")
    assert (a["finished"], b["finished"], c["finished"]) == (3, 1, 0) and c["rows"] == []
    assert b["failures"] == {"1": "ValueError: no luck"} and b["steps"] == 4
    by_seed = [given[Member("a", seed)] for seed in range(3)]
    for k in range(2):
        for name in ("frechet", "frechet_held_out"):
            values = [of["table"]["rows"][k][name] for of in by_seed]
            assert a["rows"][k][name] == pytest.approx(np.mean(values))
            assert a["rows"][k][f"{name}_spread"] == pytest.approx(np.std(values, ddof=1))
            assert a["rows"][k][f"{name}_seeds"] == values
            assert b["rows"][k][f"{name}_spread"] == 0.0
            first, second = sorted((a, b), key=lambda about: about["rows"][k][name])
            winner = found["winners"][name][str(first["rows"][k]["nfe"])]
            assert found["variants"][winner["variant"]] == first
            assert winner["lead"] == pytest.approx(second["rows"][k][name] - first["rows"][k][name])
            assert winner["lead_spread"] == pytest.approx(a["rows"][k][f"{name}_spread"])
            cell = f"**{first['rows'][k][name]:.3g}"
            assert cell in text
    assert a["train_seconds"] == pytest.approx(np.mean([of["train_seconds"] for of in by_seed]))
    floors = [of["table"]["floor"]["frechet"] for of in given.values()]
    assert found["floor"]["frechet"] == pytest.approx(np.mean(floors))
    assert "- b: 1 of 3 runs; seed 1 failed: ValueError: no luck" in text and "- c: 0 of 3 runs" in text
    assert (folder / "ablation.md").read_text() == text and len((folder / "ablation.png").read_bytes()) > 10_000


def test_columns_are_network_evaluations(tmp_path):
    rng = np.random.default_rng(1)
    one, two = result(rng), result(rng)
    for row in two["table"]["rows"]:
        row["nfe"] *= 2
    variants = {"a": report.summarise([one]), "b": report.summarise([two])}
    winners = report.winners(variants)["frechet"]
    assert {nfe: about["variant"] for nfe, about in winners.items()} == {"1": "a", "2": "b", "4": "a", "8": "b"}
    assert all(about["second"] is None for about in winners.values())


def test_what_stands_beside_is_shown_and_wins_nothing(tmp_path):
    ablation = Ablation(tiny(), {"a": {}}, equal="steps", seeds=2, beside={"teacher": "runs/t", "gone": "runs/g"})
    folder, rng, given = epath.Path(tmp_path), np.random.default_rng(2), {}
    plan.make(ablation, folder, ["a"], lambda line: None)
    alone = report.write(ablation, folder, "mine")
    assert "| teacher |  | not trained here |  |" in alone and "- teacher: 0 of 2 runs" in alone
    for member in ablation.members():
        if member.variant == "a":
            given[member] = result(rng)
        elif member.variant == "teacher":  # better than all others
            table = result(rng, steps=(1, 4, 8))["table"]
            for row in table["rows"]:
                row |= {name: row[name] / 10 for name in ("frechet", "frechet_held_out")}
            of = {"weights": "runs/t", "steps": 4600, "which": "slow"}
            given[member] = {"seconds": 1.0, "table": table, "beside": of}
    for member, one in given.items():
        runs.write(folder / str(member), one)

    text = report.write(ablation, folder, "mine")
    found = json.loads((folder / "ablation.json").read_text())
    assert list(found["variants"]) == ["a"] and list(found["beside"]) == ["teacher", "gone"]
    assert {nfe: about["variant"] for nfe, about in found["winners"]["frechet"].items()} == {"1": "a", "4": "a"}
    line = next(line for line in text.splitlines() if line.startswith("| teacher |"))
    name, steps, cost, seconds, *cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert (name, steps, cost, seconds) == ("teacher", "4,600", "not trained here", "") and "*" not in line
    by_seed = [given[Member("teacher", seed)]["table"]["rows"] for seed in range(2)]
    means = [np.mean([rows[k]["frechet"] for rows in by_seed]) for k in range(3)]
    assert [cell.split(" ±")[0] for cell in cells] == [f"{mean:.3g}" for mean in means]
    assert "weights 'slow' at step 4,600, from runs/t" in text and "- gone: 0 of 2 runs" in text


# Commands for clusters.


def launched(folder, kind, capsys):
    write_file(folder, {"a": {}, "b_2": {"model.depth": 2}}, seeds=2)
    ablate.main([*arguments(folder), f"--launch={kind}", "--seeds=2"])
    *lines, comment, last = capsys.readouterr().out.splitlines()
    assert not (folder / "runs").exists() and comment.startswith("#") and last.endswith("--report")
    return lines


def only(words):
    """The runs that a command's words pick, as the command itself reads them."""
    ablation = settings.load(words[0].removeprefix("--config="), {}, seeds=2)
    (picked,) = [word.removeprefix("--only=") for word in words if word.startswith("--only=")]
    return [str(member) for member in ablate.chosen(ablation, picked)]


EVERY = ["a/seed_0", "b_2/seed_0", "a/seed_1", "b_2/seed_1"]


def test_commands_to_be_typed(tmp_path, capsys):
    lines = [shlex.split(line) for line in launched(tmp_path, "print", capsys)]
    assert all(line[:3] == ["python", "-m", "tim_jax.ablate"] for line in lines)
    assert [run for line in lines for run in only(line[3:])] == EVERY
    assert all(set(arguments(tmp_path)) <= set(line) for line in lines)


def test_commands_for_slurm(tmp_path, capsys):
    found = []
    for line in launched(tmp_path, "slurm", capsys):
        module, sbatch, name, script, *words = shlex.split(line)
        assert (module, sbatch, script) == ("MODULE=tim_jax.ablate", "sbatch", "launch/slurm.sh")
        assert name.startswith("--job-name=tiny-")
        dry = ["bash", ROOT / script, "--dry-run", *words]
        said = subprocess.run(dry, env=os.environ | {"MODULE": "tim_jax.ablate"}, capture_output=True, text=True)
        assert said.returncode == 0 and "-m tim_jax.ablate --config=" in said.stdout
        found += only(words)
    assert found == EVERY


def test_commands_for_kubernetes(tmp_path, capsys):
    found, names = [], set()
    for line in launched(tmp_path, "kubernetes", capsys):
        name, module, bash, script, *words = shlex.split(line)
        assert (module, bash, script) == ("MODULE=tim_jax.ablate", "bash", "launch/kubernetes.sh")
        env = os.environ | dict(text.split("=") for text in (name, module))
        said = subprocess.run(["bash", ROOT / script, "--dry-run", *words], env=env, capture_output=True, text=True)
        manifest = yaml.safe_load(said.stdout)
        (container,) = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
        assert container["args"] == ["-m", "tim_jax.ablate", *words]
        names.add(manifest["metadata"]["name"])
        found += only(words)
    assert found == EVERY and len(names) == 4 and "tiny-b-2-1" in names


def test_a_name_that_is_too_long_for_kubernetes_is_refused(tmp_path, capsys):
    write_file(tmp_path, {"a" * 40: {}})
    assert "40" in fails([*arguments(tmp_path), "--launch=kubernetes"], capsys)


# Real runs.


DIVERGES = {"optimizer.learning_rate": 1e38, "optimizer.schedule": "constant", "optimizer.decay_steps": 0}


@pytest.mark.parametrize(
    "broken, why", [({"data.split": "none"}, "none"), pytest.param(DIVERGES, "not finite", marks=pytest.mark.slow)]
)
def test_a_failing_variant_is_told_and_the_others_go_on(broken, why, tmp_path, capsys, one_device):
    variants = {"good": {}, "broken": broken}  # the data of the first alone are looked at before anything runs
    write_file(tmp_path, variants)
    words = arguments(tmp_path, **{"training.max_nonfinite": 1})
    with pytest.raises(SystemExit) as stop:
        ablate.main(words)
    said = capsys.readouterr()
    assert stop.value.code == 1 and "[2/2] broken/seed_0" in said.out and "failed: broken/seed_0" in said.err
    found = json.loads((tmp_path / "runs" / "ablation.json").read_text())["variants"]
    assert found["broken"]["finished"] == 0 and why in found["broken"]["failures"]["0"]
    assert found["good"]["finished"] == 1 and [row["nfe"] for row in found["good"]["rows"]] == [1, 2]
    assert "broken: 0 of 1 runs" in (tmp_path / "runs" / "ablation.md").read_text()

    table = (tmp_path / "runs" / "ablation.json").read_bytes()
    (tmp_path / "runs" / "ablation.json").unlink()
    ablate.main([*words, "--report"])
    assert (tmp_path / "runs" / "ablation.json").read_bytes() == table
    finished = (tmp_path / "runs" / "good" / "seed_0" / "result.json").stat().st_mtime_ns
    ablate.main([*words, "--only=good"])  # nothing is left to do
    assert (tmp_path / "runs" / "good" / "seed_0" / "result.json").stat().st_mtime_ns == finished
    write_file(tmp_path, variants | {"good": {"model.depth": 2, "model.encoder_depth": 2}})
    assert "variant 'good': model.depth is 2" in fails(words, capsys)


def test_a_finished_run_beside_is_measured_as_it_was(tmp_path, capsys, one_device):
    """A variant's own workdir, beside the variants, has the figures that the variant has."""
    folder, words = tmp_path / "runs", arguments(tmp_path)
    made_up.workdir(tmp_path / "wide", "digits", **TINY | {"model.width": "32", "sampling.weights": "student"})
    made_up.workdir(tmp_path / "long", "digits", **TINY | {"data.height": "16"})
    beside = {"again": str(folder / "a" / "seed_0"), "wide": f"{tmp_path}/wide/checkpoints/0"}

    write_file(tmp_path, {"a": {}}, beside=beside)  # what is to stand beside is not there yet
    assert "beside 'again'" in fails(words, capsys) and not folder.exists()
    ablate.main([*words, "--only=a"])
    capsys.readouterr()
    write_file(tmp_path, {"a": {}}, beside={"long": str(tmp_path / "long")})
    error = fails(words, capsys)
    assert "beside 'long'" in error and "data.height is 16, must be 8" in error and not (folder / "long").exists()

    def rows(name):
        found = json.loads((folder / name / "seed_0" / "result.json").read_text())
        for row in found["table"]["rows"]:
            del row["seconds_per_image"]
        return found["table"]["rows"]

    write_file(tmp_path, {"a": {}}, beside=beside)
    ablate.main(words)
    said = capsys.readouterr().out
    assert "[2/3] again/seed_0: measured alone" in said and "[3/3] wide/seed_0" in said and "[1/3]" not in said
    assert rows("again") == rows("a") != rows("wide")
    of = {name: json.loads((folder / name / "seed_0" / "result.json").read_text())["beside"] for name in beside}
    prints = {name: one.pop("fingerprint") for name, one in of.items()}
    assert of["again"] == {"weights": beside["again"], "steps": 4, "which": "slow"}
    assert of["wide"] == {"weights": beside["wide"], "steps": 0, "which": "student"}
    assert prints["wide"] == checksums.fingerprint(tmp_path / "wide" / "checkpoints" / "0") != prints["again"]
    found = json.loads((folder / "ablation.json").read_text())
    assert found["beside"]["wide"]["finished"] == 1 and (folder / "wide" / "seed_0" / "any_step_samples.png").exists()

    # What is finished is not measured again, what is not goes on; figures of two checkpoints are never mixed.
    kept, file = (folder / "wide" / "seed_0" / "result.json").stat().st_mtime_ns, folder / "again/seed_0/result.json"
    before = made_up.contents(folder / "a")
    file.unlink()
    ablate.main([*words, "--only=again"])
    assert rows("again") == rows("a") and made_up.contents(folder / "a") == before
    assert (folder / "wide" / "seed_0" / "result.json").stat().st_mtime_ns == kept
    capsys.readouterr()
    record = json.loads(file.read_text())
    for changed, told in (({"steps": 3}, "step 3"), ({"fingerprint": "0" * 64}, f"(fingerprint {'0' * 12})")):
        file.write_text(json.dumps(record | {"beside": record["beside"] | changed}))
        error = fails([*words, "--only=again"], capsys)
        assert "now step 4" in error and told in error.split("is of")[1]
    ablate.main([*words, "--report"])  # looks at no checkpoint
    for variants, named in (({}, {"again": str(tmp_path / "wide")}), ({"wide": {"model.depth": 2}}, {})):
        write_file(tmp_path, {"a": {}} | variants, beside=named)
        assert "was measured as beside" in fails([*words, "--report"], capsys)


@pytest.mark.slow
def test_a_killed_ablation_goes_on_bit_equal(tmp_path):
    """Killed in its third run of four, asked to stop in its fourth, finished; the third is as if undisturbed."""
    for name in ("killed", "whole"):
        (tmp_path / name / "runs").mkdir(parents=True)
        write_file(tmp_path / name, {"a": {}, "b": {"objective.derivative": "dde"}}, equal="time", seeds=2)
    more = {"training.steps": 60, "optimizer.decay_steps": 60, "loader.directory": tmp_path / "data"}
    folder = tmp_path / "killed" / "runs"

    def start(name, *words):
        command = [sys.executable, "-m", "tim_jax.ablate", *arguments(tmp_path / name, **more), *words]
        with (tmp_path / f"{name}.txt").open("a") as log:
            one = os.environ | {"XLA_FLAGS": for_devices(1)}
            return subprocess.Popen(command, stdout=log, stderr=log, env=one)

    def signalled(process, number, name):
        """The exit code after a signal in the middle of a run's training."""
        checkpoints, end = folder / name / "checkpoints", time.monotonic() + 900
        while not (checkpoints.exists() and any(path.name.isdigit() for path in checkpoints.iterdir())):
            assert process.poll() is None and time.monotonic() < end, (tmp_path / "killed.txt").read_text()[-3000:]
            time.sleep(0.005)
        process.send_signal(number)
        code = process.wait(900)
        assert not (folder / name / "result.json").exists()
        return code

    assert signalled(start("killed"), signal.SIGKILL, "a/seed_1") == -signal.SIGKILL
    finished = [folder / name / "seed_0" / "result.json" for name in "ab"] + [folder / "plan.json"]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in finished]
    assert signalled(start("killed"), signal.SIGTERM, "b/seed_1") == RESTART
    assert start("killed").wait(900) == 0, (tmp_path / "killed.txt").read_text()[-3000:]
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in finished] == before
    text = (tmp_path / "killed.txt").read_text()
    assert text.count("calibrating b") == 1 and text.count("[3/4] a/seed_1") == 2 and text.count("[4/4]") == 2

    (tmp_path / "whole" / "runs" / "plan.json").write_bytes((folder / "plan.json").read_bytes())
    assert start("whole", "--only=a/seed_1").wait(900) == 0, (tmp_path / "whole.txt").read_text()[-3000:]
    rows, leaves = [], []
    for place in (folder, tmp_path / "whole" / "runs"):
        rows.append(json.loads((place / "a" / "seed_1" / "result.json").read_text())["table"]["rows"])
        for row in rows[-1]:
            del row["seconds_per_image"]
        abstract = configuration.build(tiny(seed="1"), jax.devices()[:1]).trainer.abstract
        leaves.append(state_leaves(place / "a" / "seed_1", abstract))
    assert rows[0] == rows[1] and leaves[0] == leaves[1] and leaves[0][0] == 60
