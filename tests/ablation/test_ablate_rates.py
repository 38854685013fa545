"""Learning rates of an ablation: each variant takes the best of the same few."""

import json

import numpy as np
import pytest
from etils import epath

from tests.ablation.test_ablate_table import result
from tests.helpers.ablations import arguments, fails, tiny, write_file
from tim_jax import ablate
from tim_jax.ablation import Ablation, budget, rates, runs, table
from tim_jax.ablation.settings import RATE, Member
from tim_jax.report import comparison, reading, setup
from tim_jax.runs import workdir

RATES = (1e-3, 4e-3)
VARIANTS = {"a": {}, "b": {"model.depth": 2, "model.encoder_depth": 2}}


def planned(ablation, folder):
    return budget.make(ablation, folder, list(ablation.variants), lambda line: None)


def test_the_best_on_the_held_out_part_is_taken(tmp_path):
    ablation = Ablation(tiny(), VARIANTS, equal="steps", seeds=2, learning_rates=RATES)
    ablation.check()
    folder, rng = epath.Path(tmp_path), np.random.default_rng(0)
    sweep = rates.sweep(ablation, planned(ablation, folder))
    assert list(sweep.variants) == ["a_0_001", "a_0_004", "b_0_001", "b_0_004"]
    assert sweep.config("b_0_004").model.depth == 2 and sweep.config("b_0_004").optimizer.learning_rate == 4e-3
    assert sweep.config("a_0_001").seed not in {ablation.config("a", seed).seed for seed in range(1000)}

    given = {}
    for member in sweep.members():
        given[member.variant] = result(rng)
        runs.write(rates.folder_of(folder) / str(member), given[member.variant])

    def mean_log(name):
        return np.mean([np.log(row["frechet_held_out"]) for row in given[name]["table"]["rows"]])

    expected = {name: min(RATES, key=lambda rate: mean_log(rates.label(name, rate))) for name in "ab"}
    assert rates.chosen(ablation, folder) == expected
    tuned = rates.tuned(ablation, expected)
    assert [tuned.config(name).optimizer.learning_rate for name in "ab"] == [expected[name] for name in "ab"]
    assert planned(tuned, folder) == planned(ablation, folder)  # rates change no cost

    runs.write(folder / str(Member("a", 0)), result(rng))
    text = table.write(tuned, folder, "mine")
    assert "| variant | learning rate |" in text and f"| a | {expected['a']:g} | 4 |" in text
    assert "Learning rates: for each variant the best of 0.001, 0.004" in text
    found = json.loads((folder / "ablation.json").read_text())
    assert found["variants"]["b"]["scores"]["0.004"] == pytest.approx(mean_log("b_0_004"))


def test_a_rate_that_fails_is_not_taken_and_one_that_is_missing_waited_for(tmp_path):
    ablation = Ablation(tiny(), {"a": {}}, equal="steps", learning_rates=RATES)
    folder, rng = epath.Path(tmp_path), np.random.default_rng(0)
    first, second = (rates.folder_of(folder) / str(Member(rates.label("a", rate), 0)) for rate in RATES)
    runs.write(first, {"failure": "ValueError: no luck"})
    assert rates.chosen(ablation, folder) == {}
    worst = result(rng)
    runs.write(second, worst)
    assert rates.chosen(ablation, folder) == {"a": RATES[1]}
    worst["table"]["rows"][0]["frechet_held_out"] = float("nan")
    runs.write(second, worst)
    assert rates.chosen(ablation, folder) == {}


def test_schedules_in_the_sweep_are_those_of_the_runs(tmp_path):
    """A variant of half the cost takes twice the steps, and its warm-up is stretched with them."""
    ablation = Ablation(
        tiny(optimizer__warmup_steps="2", optimizer__decay_steps="4"), {"a": {}}, equal="flops", learning_rates=RATES
    )
    sweep = rates.sweep(ablation, {"variants": {"a": {"steps": 8}}})
    config = sweep.config("a_0_001")
    assert (config.training.steps, config.optimizer.warmup_steps, config.optimizer.decay_steps) == (8, 4, 8)


@pytest.mark.parametrize(
    "words, named",
    [
        (["--learning-rates=1e-3"], "--learning-rates is (0.001,); it must be two or more different numbers above 0"),
        (["--learning-rates=0,1e-3"], "--learning-rates is (0.0, 0.001); it must be two"),
        (["--learning-rates=fast"], "--learning-rates is 'fast'; it must be numbers"),
    ],
)
def test_wrong_rates_are_named(words, named, tmp_path, capsys):
    write_file(tmp_path, {"a": {}})
    assert named in fails([*arguments(tmp_path), *words], capsys)
    write_file(tmp_path, {"a": {RATE: 1e-3}})
    said = fails([*arguments(tmp_path), "--learning-rates=1e-3,2e-3"], capsys)
    assert f"variant 'a': changes {RATE}; learning_rates sets it" in said


def test_a_job_tries_the_rates_of_its_variant(tmp_path, capsys):
    write_file(tmp_path, VARIANTS, equal="steps", seeds=2)
    ablate.main([*arguments(tmp_path), "--learning-rates=1e-3,4e-3", "--launch=print"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("--only=")[2] for line in lines[:2]] == ["a", "b"] and lines[2].startswith("#")
    assert all("--learning-rates=1e-3,4e-3" in line for line in lines[:2])


@pytest.mark.slow
def test_rates_are_tried_and_then_the_seeds(tmp_path, capsys):
    """Also variant by variant, the last one first: each command adds to the sweep that is there."""
    write_file(tmp_path, {"b": {"model.patch_size": 4}, "a": {}}, equal="steps", seeds=2)
    words = [*arguments(tmp_path), "--learning-rates=1e-3,4e-3"]
    ablate.main([*words, "--only=a"])
    said, folder = capsys.readouterr().out, epath.Path(tmp_path / "runs")
    best = rates.chosen(Ablation(tiny(), {"a": {}}, equal="steps", learning_rates=RATES), folder)["a"]
    assert f"a: learning rate {best:g}" in said and "[2/2] a/seed_1" in said
    assert workdir.recorded(folder / "a/seed_1")["optimizer"]["learning_rate"] == best
    found = comparison.read(reading.Folder(folder))
    assert (RATE, setup.NOWHERE, f"{best:g}") in found.variants["a"]["changes"] and list(found.variants) == ["b", "a"]
    assert (folder / "learning_rates/ablation.md").exists() and "learning rate" in (folder / "ablation.md").read_text()
    ablate.main([*words, "--only=a"])
    assert "[1/" not in capsys.readouterr().out  # nothing is trained twice
    ablate.main([*words, "--only=b", "--seeds=1"])
    said = capsys.readouterr().out
    assert "b: learning rate" in said and "[1/2] b_0_001/seed_0" in said and "[1/1] b/seed_0" in said
    swept = (folder / "learning_rates/ablation.md").read_text()
    assert all(f"| {rates.label(name, rate)} |" in swept for name in "ab" for rate in RATES)
