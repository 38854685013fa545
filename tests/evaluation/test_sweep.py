"""A sweep: its cells against the single commands, what is measured again and what is not, its table, refusals."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image

from tests.helpers.configs import TINY_NETWORK, flags
from tests.helpers.programs import traced as traced
from tests.helpers.workdirs import contents, told, workdir
from tim_jax import evaluate, grid, train
from tim_jax.config.build import build
from tim_jax.evaluation import protocol, sweep
from tim_jax.evaluation.protocol import Protocol
from tim_jax.runs import any_step
from tim_jax.runs import sweep as sweeps
from tim_jax.runs import workdir as runs_workdir
from tim_jax.runs.evaluation_arguments import EvaluationArguments
from tim_jax.runs.sweep import Store, set_of
from tim_jax.training import sharding

SMALL = [
    *flags(TINY_NETWORK), "--config.model.patch_size=4", "--config.data.batch_size=32",
    "--config.training.sample_steps=1", "--config.training.sample_every=0", "--config.training.steps=4",
    "--config.optimizer.warmup_steps=0", "--config.optimizer.learning_rate=0.05", "--config.optimizer.ema_warmup=False",
    "--config.ema.slow=0.5", "--config.evaluation.periodic.every=4", "--config.evaluation.periodic.steps=(1,)",
    "--config.evaluation.periodic.num_samples=20", "--config.evaluation.periodic.emas=('online', 'slow')",
]  # fmt: skip
ASKED = ["--guidance=1,1.5,2", "--guidance-interval=0:1,0.6:1", "--weights=slow,online", "--steps=1,2", "--seeds=2"]
FIGURES = ("frechet", "kernel", "precision", "recall")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run of four steps on one device."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding.jax, "devices", lambda first=jax.devices()[:1]: first)
        train.main(["--config=digits", f"--workdir={folder / 'run'}", *SMALL, data(folder)])
        yield folder


def data(folder):
    return f"--config.loader.directory={folder / 'data'}"


def run(place, out, *arguments):
    evaluate.main([f"--workdir={place / 'run'}", data(place), "--count=20", f"--out={place / out}", *arguments])
    return place / out


@pytest.mark.slow
def test_every_table_export_and_start_says_its_protocol(place, tmp_path):
    start = json.loads((place / "run" / "starts.jsonl").read_text())
    found = [protocol.read(each) for each in start["evaluation_protocols"]]
    assert [(each.weights, each.samples, each.seeds) for each in found] == [("online", 20, (0,)), ("slow", 20, (0,))]
    folder = run(place, "table", "--steps=1", "--seeds=2", "--guidance=1.5", "--config.evaluation.labels=balanced")
    table = json.loads((folder / "any_step.json").read_text())
    said = protocol.read(table["protocol"])
    assert (said.labels, said.samples, said.seeds, said.weights) == ("balanced", 20, (0, 1), "slow")
    assert (said.guidance, said.guidance_interval, said.guidance_ends) == (1.5, (0.0, 1.0), "included")
    assert said.reference == table["reference"] and said.held_out["split"] == "held_out"
    assert said.line in (folder / "any_step.md").read_text()
    export = tmp_path / "samples.npz"
    evaluate.main([f"--workdir={place / 'run'}", data(place), "--steps=3", "--count=5", f"--export={export}"])
    with np.load(export) as stored:
        about = json.loads(str(stored["protocol"]))
        assert stored["arr_0"].shape == (5, 8, 8, 3)
    assert (about["samples"], about["steps"], about["step"], about["levels"]) == (5, 3, 4, "8 bits")
    assert protocol.read(about).reference is None


class Killed(BaseException):
    """As SIGKILL: nothing catches it."""


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_and_every_cell_is_that_of_the_single_command(
    place, monkeypatch, capsys, traced
):
    measured, generators = [], []
    real, opened = any_step.measure, any_step.measurement_generator

    def counting(*args, **keywords):
        if len(measured) == 5:
            raise Killed
        measured.append(args[4:6])
        return real(*args, **keywords)

    monkeypatch.setattr(sweeps, "measure", counting)
    monkeypatch.setattr(
        any_step, "measurement_generator", lambda *args: generators.append(opened(*args)) or generators[-1]
    )
    with pytest.raises(Killed):
        run(place, "sweep", *ASKED)
    file = place / "sweep" / "sweep.jsonl"
    assert len(file.read_text().splitlines()) == 5 and [path.name for path in file.parent.iterdir()] == [file.name]
    file.write_text(file.read_text()[:-40])  # the last line was cut off
    monkeypatch.setattr(sweeps, "measure", lambda *args: measured.append(args[4:6]) or real(*args))
    measured.clear(), generators.clear(), capsys.readouterr()
    run(place, "sweep", *ASKED)
    assert len(measured) == 40 - 4, (
        "two weights, scale 1 once and two others in two intervals, two step counts and seeds"
    )
    out = capsys.readouterr().out
    assert "4 of 40 sets of samples were measured before" in out and "s left] 40/40: " in out
    assert traced.count(generators[0]) == 2, "one program for all that is guided, and one for what is not"
    assert {path.name for path in file.parent.iterdir()} == {"sweep.jsonl", "sweep.md", "sweep.json", "sweep.png"}
    found = json.loads((place / "sweep" / "sweep.json").read_text())
    assert len(found["lines"]) == 10 and found["step"] == 4 and found["samples"] == 20 and found["seeds"] == [0, 1]
    lines = {
        (line["weights"], line["guidance"], tuple(line["guidance_interval"] or ())): line for line in found["lines"]
    }
    assert len(lines) == 10 and ("slow", 1.0, ()) in lines
    for weights, scale, interval in (("online", 1.0, ()), ("slow", 2.0, (0.0, 1.0)), ("online", 1.5, (0.6, 1.0))):
        keys = [f"--config.sampling.ema={weights}", f"--config.sampling.guidance={scale}"]
        keys += (
            [f"--config.sampling.guidance_{end}={v}" for end, v in zip(("low", "high"), interval)] if interval else []
        )
        run(place, "single", "--steps=1,2", "--seeds=2", *keys)
        table = json.loads((place / "single" / "any_step.json").read_text())
        line = lines[weights, scale, interval]
        assert line["protocol"] == table["protocol"]
        for ours, theirs in zip(line["rows"], table["rows"], strict=True):
            assert ours["nfe"] == theirs["nfe"]
            for name in FIGURES:
                np.testing.assert_allclose(ours[f"{name}_seeds"], theirs[f"{name}_seeds"], rtol=1e-4, atol=1e-6)
    values = [line["rows"][0]["frechet"] for line in lines.values()]
    assert len(set(values)) == 6, "1.5 and 2 in both intervals are the same at one step"
    # Asked for again, with one more scale: only that is measured. By another protocol: all.
    measured.clear()
    run(place, "sweep", "--guidance=1,2,3", "--steps=2", "--seeds=2")
    assert len(measured) == 2
    measured.clear()
    run(place, "sweep", "--guidance=1,2", "--steps=2", "--seeds=2", "--config.evaluation.labels=balanced")
    assert len(measured) == 4
    assert json.loads((place / "sweep" / "sweep.json").read_text())["lines"][0]["protocol"]["labels"] == "balanced"


@pytest.mark.slow
def test_samples_that_are_not_finite_are_said_and_do_not_end_a_sweep(place, monkeypatch):
    real = any_step.measure

    def measure(measurement, generator, *args):
        if generator.run.sampling.guidance == 2:
            raise ValueError("samples: 3 of 20 in a batch are not finite")
        return real(measurement, generator, *args)

    monkeypatch.setattr(sweeps, "measure", measure)
    folder = run(place, "broken", "--guidance=1,2", "--steps=1,2", "--seeds=1")
    text = (folder / "sweep.md").read_text()
    assert (
        "| 2 | failed | failed |" in text
        and "- guidance 2, 2 steps: samples: 3 of 20 in a batch are not finite" in text
    )


# Each of these changes what a set of samples is.
OTHERS = [{"step": 5}, {"steps": 3}, {"seed": 1}, {"checkpoint": "other"}]
REFERENCE = {"data": "digits", "split": "train", "images": 4, "size": "8x8x1", "preprocessing": "8 bits",
             "features": "pixels", "rows": 4}  # fmt: skip
PROTOCOL = Protocol(REFERENCE, None, "data", "8 bits", 20, (0, 1), "slow", "flow_map", "uniform")


def test_nothing_is_taken_for_what_it_is_not(tmp_path):
    of = {"protocol": PROTOCOL, "steps": 2, "seed": 0, "step": 4, "checkpoint": "abc"}
    store = Store(tmp_path / "new" / "sweep.jsonl")
    store.add(set_of(**of), {"figures": {"frechet": 1.0}, "seconds": 0.1})
    known = Store(tmp_path / "new" / "sweep.jsonl")
    assert known.get(set_of(**of))["figures"] == {"frechet": 1.0}
    assert known.get(set_of(**of | {"protocol": replace(PROTOCOL, seeds=(0, 1, 2))})), "more seeds keep the first ones"
    for other in OTHERS:
        assert known.get(set_of(**of | other)) is None, other
    for change in ({"weights": "online"}, {"labels": "balanced"}, {"samples": 21}, {"guidance": 2.0}, {"grid": "edm"}):
        assert known.get(set_of(**of | {"protocol": replace(PROTOCOL, **change)})) is None, change
    Store(tmp_path / "read.jsonl", writes=False).add(set_of(**of), {})
    assert not (tmp_path / "read.jsonl").exists()


@pytest.mark.parametrize(
    "arguments, ways",
    [
        ({}, [{}]),
        ({"guidance": [1.5]}, [{"sampling.guidance": "1.5"}]),
        ({"weights": ["slow", "fast", "slow"]}, [{"sampling.ema": "slow"}, {"sampling.ema": "fast"}]),
        ({"guidance": [1.0, 2.0], "guidance_interval": [(0.1, 0.8)]},
         [{"sampling.guidance": "1.0"},
          {"sampling.guidance": "2.0", "sampling.guidance_low": "0.1", "sampling.guidance_high": "0.8"}]),
    ],
)  # fmt: skip
def test_ways(arguments, ways):
    asked = EvaluationArguments("x", [1], **arguments)
    assert asked.ways == ways and asked.is_sweep == (len(ways) > 1)


def cells(values, metric="frechet", spread=0.01, **about):
    """A sweep of one line per weights {name: {steps: value}}."""
    lines = [{"weights": name, "sampler": "flow_map", "plan": "own plan", "guidance": 1.0, "guidance_interval": None,
              "failures": {}, "protocol": PROTOCOL.record(),
              "rows": [{"steps": s, "nfe": 2 * s, "evaluations": 2 * s, metric: v, f"{metric}_spread": spread}
                       for s, v in rows.items()]}
             for name, rows in values.items()]  # fmt: skip
    about |= {"samples": 20, "seeds": [0, 1], "step": 7, "reference": REFERENCE, "floor": {metric: 0.25}}
    return sweep.make(lines, about)


def test_the_best_cell_is_named_by_steps_and_overall():
    found = cells({"slow": {1: 0.5, 4: 0.31}, "fast": {1: 0.4, 4: 0.3}, "online": {1: 0.9, 4: 0.8}})
    first, last = found["best"]["steps"]["1"], found["best"]["steps"]["4"]
    assert (first["weights"], first["value"], first["second"], first["close"]) == ("fast", 0.4, "slow", False)
    assert (last["weights"], last["nfe"], last["second"], last["close"]) == ("fast", 8, "slow", True)
    assert found["best"]["overall"] == last | {"second": "slow, 4 steps"}
    text = sweep.to_markdown(found)
    lines = text.splitlines()
    assert lines[2] == "| weights | 1 | 4 |" and "| fast | **0.4 ± 0.01** | **0.3 ± 0.01** |" in lines
    assert "- 1 step: fast (0.4 ± 0.01, 2 NFE)" in lines
    assert "- 4 steps: fast (0.3 ± 0.01, 8 NFE, within the spread of slow)" in lines
    assert "- **overall: 4 steps, fast" in text and "training step 7" in text and PROTOCOL.measured in text
    higher = cells({"slow": {1: 0.5}, "fast": {1: 0.4}}, metric="precision")
    assert higher["best"]["overall"]["weights"] == "slow" and "**0.5 ± 0.01**" in sweep.to_markdown(higher)
    assert cells({"slow": {}})["best"]["overall"] is None


def test_what_is_restored_is_compared_within_its_operator():
    ways = {
        ("greyscale", "dps"): (2.0, 21.0),
        ("greyscale", "resample"): (1.5, 20.0),
        ("gaussian_blur", "dps"): (9.0, 8.0),
    }
    lines = [{"operator": operator, "steering": method, "weights": "slow", "sampler": "flow_map", "plan": "own plan",
              "guidance": 1.0, "guidance_interval": None, "failures": {}, "protocol": PROTOCOL.record(),
              "rows": [{"steps": 2, "nfe": 2, "frechet": distance, "frechet_spread": 0.01, "psnr": psnr,
                        "psnr_spread": 0.1}]} for (operator, method), (distance, psnr) in ways.items()]  # fmt: skip
    about = {"samples": 20, "seeds": [0, 1], "step": 7, "reference": REFERENCE, "floor": {"frechet": 0.25}}
    found = sweep.make(lines, about | {"inputs": {"greyscale": 12.5, "gaussian_blur": 14.25}})
    assert found["best"] == {"steps": {}, "overall": None}
    text = sweep.to_markdown(found)
    assert "| operator | steering | 2 |" in text
    assert "| greyscale | dps | 2 ± 0.01 |" in text and "| greyscale | resample | **1.5 ± 0.01** |" in text
    assert "| greyscale | dps | **21 ± 0.1** |" in text and "| greyscale | resample | 20 ± 0.1 |" in text
    assert text.count("| gaussian_blur | dps | **") == 2 and "12.5 dB of greyscale, 14.25 dB of gaussian_blur" in text
    assert sweep.make(lines[:2], about)["best"]["overall"]["steering"] == "resample"


def test_by_evaluations_those_that_cost_the_same_are_compared():
    found = cells({"slow": {1: 0.5, 2: 0.31}, "fast": {2: 0.3, 4: 0.2}}, by="evaluations")
    assert {count: cell["weights"] for count, cell in found["best"]["evaluations"].items()} == {
        "2": "slow", "4": "fast", "8": "fast"
    }  # fmt: skip
    found["lines"][1]["rows"][0]["nfe"] = 3.25  # as the mean of a sampler that skips some
    text = sweep.to_markdown(found)
    assert "by network evaluations per image:" in text and "| weights | 2 | 4 | 8 |" in text
    assert "| slow | **0.5 ± 0.01** | 0.31 ± 0.01 |  |" in text
    assert "| fast |  | **0.3 ± 0.01** (3.25 NFE) | **0.2 ± 0.01** |" in text
    assert "- 2 evaluations: slow (0.5 ± 0.01, 2 NFE)" in text


@pytest.mark.slow
def test_a_sweep_over_what_is_restored_and_how(place, capsys):
    asked = [
        "--operator=box_inpainting:0.5,super_resolution:2",
        "--steering=flowchef,resample",
        "--steps=1",
        "--seeds=1",
    ]
    folder = run(place, "restored", *asked)
    found = json.loads((folder / "sweep.json").read_text())
    lines = {(line["operator"], line["steering"]): line["rows"][0] for line in found["lines"]}
    assert len(lines) == 4 and all(0 < row["psnr"] < 60 for row in lines.values())
    # In one step both paste what was measured on the same free sample; the other operator measures something else.
    for operator in ("box_inpainting:0.5", "super_resolution:2"):
        assert lines[operator, "flowchef"]["psnr"] == pytest.approx(lines[operator, "resample"]["psnr"], abs=0.05)
    with Image.open(folder / "sweep_steps1.png") as picture:
        assert picture.size[1] > picture.size[0] / 2
    text = (folder / "sweep.md").read_text()
    assert text in capsys.readouterr().out + "\n" and "PSNR of the degraded images themselves" in text
    table = run(place, "one", "--operator=super_resolution:2", "--steering=resample", "--steps=1", "--seeds=1")
    (row,) = json.loads((table / "any_step.json").read_text())["rows"]
    assert row["psnr"] == pytest.approx(lines["super_resolution:2", "resample"]["psnr"], abs=0.01)


@pytest.mark.slow
def test_each_sampler_takes_the_steps_that_cost_what_is_asked(place):
    run = build(runs_workdir.load(place / "run", {}), jax.devices()[:1])

    def steps(sampler, **settings):
        sampling = replace(run.sampling, sampler=sampler, **settings)
        return any_step.network_evaluations(replace(run, sampling=sampling), [], [1, 4, 6, 7])

    assert steps("euler") == {1: 1, 4: 4, 6: 6, 7: 7} and steps("euler", guidance=2.0) == {2: 4, 3: 6}
    assert steps("sde_heun") == {1: 1, 4: 7}
    assert steps("dpm_solver_2s") == {2: 4, 3: 6} and steps("euler", plan="learned") == {}


@pytest.mark.slow
def test_a_sweep_over_samplers_and_plans_by_evaluations(place, capsys):
    grid.main([f"--workdir={place / 'run'}", "--kind=learned", "--steps=2", "--times=5", "--count=8",
               "--iterations=30", "--config.sampling.sampler=euler"])  # fmt: skip
    capsys.readouterr()
    asked = ["--sampler=euler,dpm_solver_2s,sada", "--plan=sampler,learned", "--evaluations=2,4", "--seeds=1"]
    folder = run(place, "plans", *asked)
    out, found = capsys.readouterr().out, json.loads((folder / "sweep.json").read_text())
    assert "left out: dpm_solver_2s: sampling.plan is 'learned'; it must have been found for dpm_solver_2s" in out
    assert "left out: sada: sampling.sampler is 'sada'; it must be one with the same weights" in out
    lines = {(line["sampler"], line["plan"]): line["rows"] for line in found["lines"]}
    assert {name: [row["steps"] for row in rows] for name, rows in lines.items()} == {
        ("euler", "own plan"): [2, 4], ("euler", "learned plan"): [2], ("dpm_solver_2s", "own plan"): [1, 2],
        ("sada", "own plan"): [2, 4],
    }  # fmt: skip
    assert lines["euler", "own plan"][0]["frechet"] != lines["euler", "learned plan"][0]["frechet"]
    assert found["by"] == "evaluations" and "| sampler | plan | 2 | 4 |" in (folder / "sweep.md").read_text()
    (place / "run" / "learned_plan.json").unlink()


@pytest.mark.parametrize(
    "arguments, seen",
    [
        (["--steps="], "--steps is ''; it must be"),
        (["--steps=2", "--evaluations=2"], "--steps is 2; it must be left out with --evaluations"),
        (
            ["--sampler=dpm_solver_2s", "--evaluations=1,3"],
            "--evaluations is 1,3; it must be what some steps of dpm_solver_2s",
        ),
        (["--plan=mine"], "--plan: sampling.plan is 'mine'; it must be one of"),
        (["--plan=learned"], "sampling.plan is 'learned'; it must have been found"),
        (["--guidance=0.5,x"], "--guidance is '0.5,x'; it must be numbers"),
        (["--guidance=1,-1"], "--guidance has -1; each must be at least 0"),
        (["--guidance=1,nan"], "--guidance has nan"),
        (["--guidance-interval=0.2"], "--guidance-interval has '0.2'; each must be LOW:HIGH"),
        (["--guidance=2", "--guidance-interval=0.8:0.2"], "--guidance-interval has '0.8:0.2'; its ends"),
        (["--guidance=1", "--guidance-interval=0:1,0.2:0.8"], "--guidance-interval is given; it must be left out"),
        (
            ["--guidance-interval=0:1,0.2:0.8"],
            "--guidance-interval is given; it must be left out where sampling.guidance is",
        ),
        (["--weights=slow,"], "--weights is 'slow,'; it must be words"),
        (["--weights=slow,none"], "--weights: sampling.ema is 'none'; it must be one of"),
        (["--sampler=flow_map,rk45"], "--sampler: sampling.sampler is 'rk45'; it must be one of"),
        (
            ["--guidance=1,2", "--config.sampling.guidance=3"],
            "--config.sampling.guidance is given; it must be left out",
        ),
        (["--guidance=1,2", "--nearest=3"], "--nearest is 3; it must be left out"),
        (["--guidance=1,2", "--export=x.npz", "--steps=1"], "--export is 'x.npz'; it must be left out"),
        (["--guidance=1,2", "--steps=0"], "--steps has 0"),
        (["--operator=cartoon,greyscale"], "--operator: sampling.steering.operator is 'cartoon'; it must be one of"),
        (
            ["--operator=box_inpainting,greyscale"],
            "--operator: sampling.steering.operator is 'greyscale'; it must be another one",
        ),
        (["--operator=box_inpainting,brightness"], "--operator is box_inpainting,brightness; it must be measurements"),
        (["--operator=brightness,image_similarity"], "'image_similarity'; it must have an image"),
        (["--operator=box_inpainting", "--steering=dps,best"], "--steering: sampling.steering.method is 'best'"),
    ],
)
def test_wrong_sweeps_are_named_and_touch_nothing(arguments, seen, place, capsys):
    before = contents(place)
    capsys.readouterr()
    error = told(evaluate.main, [f"--workdir={place / 'run'}", data(place), "--count=20", *arguments], capsys)
    assert seen in error and contents(place) == before


def test_guidance_without_a_null_condition_is_refused(tmp_path, capsys):
    changes = {"data.condition_dropout": "0.0", "loader.directory": str(tmp_path / "data")}
    workdir(tmp_path / "run", "digits", **TINY_NETWORK, **changes)
    before = contents(tmp_path)
    error = told(evaluate.main, [f"--workdir={tmp_path / 'run'}", "--guidance=1,1.5", "--steps=1"], capsys)
    assert "data.condition_dropout is 0.0" in error and "sampling.guidance is 1.5" in error
    assert contents(tmp_path) == before
