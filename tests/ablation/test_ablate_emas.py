"""Averages of one run compared: by real runs, against what other commands measure of the same weights."""

import json

import jax
import pytest

from tests.helpers.ablations import arguments, write_file
from tim_jax import ablate, evaluate
from tim_jax.training import sharding

EMAS = {"ema.slow": 0.5, "ema.fast": 0.1, "posthoc_ema.sigma_rel": "(0.05,0.1)", "posthoc_ema.every": 1,
        "posthoc_ema.dtype": "float32"}  # fmt: skip


def rows(table):
    return [
        {key: value for key, value in row.items() if key != "seconds_per_image" and not key.endswith("_seeds")}
        for row in table["rows"]
    ]


@pytest.mark.slow
def test_averages_are_measured_of_runs_that_are_finished_and_nothing_is_trained(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sharding.jax, "devices", lambda first=jax.devices()[:1]: first)
    write_file(tmp_path, {"a": {}})
    words, place = arguments(tmp_path, **EMAS), tmp_path / "runs" / "a" / "seed_0"
    ablate.main(words)
    alone, trained = json.loads((place / "result.json").read_text()), (place / "metrics.jsonl").read_bytes()
    starts = (place / "starts.jsonl").read_bytes()
    checkpoint = {path: path.stat().st_mtime_ns for path in (place / "checkpoints").rglob("*")}
    assert "emas" not in alone

    names = ["fast", "online", "sigma_rel:0.07"]
    ablate.main([*words, f"--emas={','.join(names)}"])
    said = capsys.readouterr().out
    assert "[1/1] a/seed_0: measured alone" in said and "a/seed_0 (online): frechet 1:" in said
    now = json.loads((place / "result.json").read_text())
    assert {key: now[key] for key in alone} == alone and list(now["emas"]) == names
    assert (place / "metrics.jsonl").read_bytes() == trained and (place / "starts.jsonl").read_bytes() == starts
    assert {path: path.stat().st_mtime_ns for path in (place / "checkpoints").rglob("*")} == checkpoint
    found = json.loads((tmp_path / "runs" / "ablation.json").read_text())["variants"]
    assert list(found) == ["a (slow)", *(f"a ({name})" for name in names)]
    table = (tmp_path / "runs" / "ablation.md").read_text()
    assert all(f"| a ({name}) | 4 | 1.00 |" in table for name in ("slow", *names))
    assert (place / "any_step_samples_sigma_rel_0.07.png").exists()

    for name in ("slow", *names):  # evaluate draws the same noise and labels, and measures against the same images
        out = tmp_path / name
        evaluate.main([f"--workdir={place}", "--steps=1,2", "--seeds=1", "--count=16", "--nearest=0", f"--out={out}",
                       f"--config.sampling.ema={name}"])  # fmt: skip
        measured = json.loads((out / "any_step.json").read_text())
        of_ablation = now["table"] if name == "slow" else now["emas"][name]
        for here, there in zip(rows(of_ablation), rows(measured), strict=True):
            assert {key: here[key] for key in there} == pytest.approx(there, rel=1e-5)
    assert len({row["frechet"] for row in (now["table"]["rows"][0], *(now["emas"][n]["rows"][0] for n in names))}) == 4

    # The report alone shows what is measured; without the names it is as before; a new run measures all at once.
    ablate.main([*words, "--emas=fast", "--report"])
    assert list(json.loads((tmp_path / "runs" / "ablation.json").read_text())["variants"]) == ["a (slow)", "a (fast)"]
    ablate.main([*words, "--report"])
    assert list(json.loads((tmp_path / "runs" / "ablation.json").read_text())["variants"]) == ["a"]
    kept = (place / "result.json").read_bytes()
    (place / "checkpoints").rename(place / "gone")
    with pytest.raises(SystemExit):
        ablate.main([*words, "--emas=sigma_rel:0.2"])
    assert "checkpoint" in capsys.readouterr().err and (place / "result.json").read_bytes() == kept
