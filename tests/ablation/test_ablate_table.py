"""The table of an ablation: what it holds, by numpy."""

import json

import numpy as np
import pytest
from etils import epath

from tests.helpers.ablations import tiny
from tim_jax.ablation import Ablation, budget, job, runs, table
from tim_jax.ablation.settings import Member
from tim_jax.evaluation.protocol import Protocol


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
    budget.make(ablation, folder, list(ablation.variants), lambda line: None)
    given = {}
    for member in ablation.members():
        if member == Member("b", 1):
            runs.write(folder / str(member), {"failure": "ValueError: no luck"})
        elif member != Member("b", 2) and member.variant != "c":
            given[member] = result(rng)
            runs.write(folder / str(member), given[member])

    text = table.write(ablation, folder, "mine")
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


def test_runs_that_were_measured_otherwise_are_named(tmp_path):
    ablation = Ablation(tiny(), {"a": {}, "b": {"model.depth": 2}}, equal="steps", seeds=2)
    folder, rng = epath.Path(tmp_path), np.random.default_rng(0)
    budget.make(ablation, folder, list(ablation.variants), lambda line: None)
    reference = {"data": "digits ab", "split": "train", "images": 30, "size": "8x8x1", "preprocessing": "8 bits",
                 "features": "pixels", "rows": 20}  # fmt: skip
    for member in ablation.members():
        labels = "balanced" if member == Member("b", 1) else "data"
        by = Protocol(reference, None, labels, "8 bits", 16, (member.seed,), "slow", "flow_map", "uniform")
        made = result(rng)
        runs.write(folder / str(member), made | {"table": made["table"] | {"protocol": by.record()}})
    text = table.write(ablation, folder, "mine")
    line = "b/seed_1 was measured with labels 'balanced', a/seed_0 with 'data': they cannot be compared"
    assert f"**Not to be compared:** {line}." in text and text.count("Not to be compared") == 1
    assert json.loads((folder / "ablation.json").read_text())["measured_otherwise"] == [line]
    assert "Protocol pixels: 16 samples rounded to 8 bits, labels as often as in the data; against 30 images" in text


def test_columns_are_network_evaluations(tmp_path):
    rng = np.random.default_rng(1)
    one, two = result(rng), result(rng)
    for row in two["table"]["rows"]:
        row["nfe"] *= 2
    variants = {"a": table.summarise({0: one}), "b": table.summarise({0: two})}
    winners = table.winners(variants)["frechet"]
    assert {nfe: about["variant"] for nfe, about in winners.items()} == {"1": "a", "2": "b", "4": "a", "8": "b"}
    assert all(about["second"] is None for about in winners.values())


def test_a_baseline_is_shown_and_wins_nothing(tmp_path):
    ablation = Ablation(tiny(), {"a": {}}, equal="steps", seeds=2, baselines={"teacher": "runs/t", "gone": "runs/g"})
    folder, rng, given = epath.Path(tmp_path), np.random.default_rng(2), {}
    budget.make(ablation, folder, ["a"], lambda line: None)
    alone = table.write(ablation, folder, "mine")
    assert "| teacher |  | not trained here |  |" in alone and "- teacher: 0 of 2 runs" in alone
    for member in ablation.members():
        if member.variant == "a":
            given[member] = result(rng)
        elif member.variant == "teacher":  # better than all others
            measured = result(rng, steps=(1, 4, 8))["table"]
            for row in measured["rows"]:
                row |= {name: row[name] / 10 for name in ("frechet", "frechet_held_out")}
            of = {"checkpoint": "runs/t", "steps": 4600, "ema": "slow"}
            given[member] = {"seconds": 1.0, "table": measured, "baseline": of}
    for member, one in given.items():
        runs.write(folder / str(member), one)

    text = table.write(ablation, folder, "mine")
    found = json.loads((folder / "ablation.json").read_text())
    assert list(found["variants"]) == ["a"] and list(found["baselines"]) == ["teacher", "gone"]
    assert {nfe: about["variant"] for nfe, about in found["winners"]["frechet"].items()} == {"1": "a", "4": "a"}
    line = next(line for line in text.splitlines() if line.startswith("| teacher |"))
    name, steps, cost, seconds, *cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert (name, steps, cost, seconds) == ("teacher", "4,600", "not trained here", "") and "*" not in line
    by_seed = [given[Member("teacher", seed)]["table"]["rows"] for seed in range(2)]
    means = [np.mean([rows[k]["frechet"] for rows in by_seed]) for k in range(3)]
    assert [cell.split(" ±")[0] for cell in cells] == [f"{mean:.3g}" for mean in means]
    assert "weights 'slow' at step 4,600, from runs/t" in text and "- gone: 0 of 2 runs" in text


def test_only_has_a_report_of_its_own_beside_that_of_all(tmp_path):
    ablation = Ablation(tiny(), {"a": {}, "b": {"model.depth": 2}, "c": {"model.depth": 3}}, equal="steps", seeds=2)
    folder, rng = epath.Path(tmp_path), np.random.default_rng(4)
    budget.make(ablation, folder, list(ablation.variants), lambda line: None)
    given = {member: result(rng) for member in ablation.members()}
    for member, one in given.items():
        runs.write(folder / str(member), one)
    text = table.write(ablation, folder, "mine", job.chosen(ablation, "a/seed_1, c"))
    whole, part = (json.loads((folder / names[1]).read_text()) for names in (table.NAMES, table.ONLY_NAMES))
    assert (folder / "ablation_only.md").read_text() == text and (folder / "ablation_only.png").exists()
    assert list(whole["variants"]) == ["a", "b", "c"] and whole["others"] == []
    assert list(part["variants"]) == ["a", "c"] and part["others"] == ["b"]
    assert part["variants"]["c"] == whole["variants"]["c"]
    assert part["variants"]["a"]["rows"][0]["frechet"] == given[Member("a", 1)]["table"]["rows"][0]["frechet"]
    assert "| a |" in text and "| b |" not in text and "Left out by --only: b." in text and "Not finished" not in text
    assert table.write(ablation, folder, "mine") == (folder / "ablation.md").read_text() and "| b |" not in text


def test_results_of_version_0_1_are_read(tmp_path):
    of = {"weights": "runs/t", "which": "slow", "steps": 4600, "fingerprint": "ab"}
    folder, one = epath.Path(tmp_path), result(np.random.default_rng(3)) | {"beside": of}
    (folder / runs.FILE).write_text(json.dumps(one))
    now = {"checkpoint": "runs/t", "ema": "slow", "steps": 4600, "fingerprint": "ab"}
    assert runs.read(folder) == {name: value for name, value in one.items() if name != "beside"} | {"baseline": now}
