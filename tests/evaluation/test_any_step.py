"""The any-step table: its fields, numbers and verdicts."""

import json

import numpy as np
import pytest
from PIL import Image

from tim_jax.evaluation import anystep, metrics
from tim_jax.evaluation.references import Reference
from tim_jax.evaluation.yardstick import HELD_OUT, Yardstick, gather, needs_of

SHAPE = (4, 4, 1)


def data(seed, n):
    return np.tanh(np.random.default_rng(seed).standard_normal((n, *SHAPE))).astype(np.float32)


def flat(seed, n, shift=0.0):
    """One stream of the features of data."""
    return [({"features": data(seed, n).reshape(n, -1) + np.float32(shift)}, np.arange(n))]


@pytest.fixture(scope="module")
def yardstick():
    chosen = metrics.chosen(("features",))
    parts = {}
    for end, seed, n in (("", 0, 300), (HELD_OUT, 1, 100)):
        parts[end] = Reference({}, gather(flat(seed, n), needs_of(chosen, reference=True), n, 1000))
    return Yardstick(chosen, parts, max_images=1000)


def measured(yardstick, error):
    """Figures of samples that are off by error(steps) in every pixel, from the same noise at every step count."""
    return lambda steps, seed: (yardstick.figures(flat(1000 + seed, 200, error(steps)), 200), 0.01 * 200 * steps)


@pytest.fixture(scope="module")
def table(yardstick):
    calls = []
    result = anystep.any_step_table(
        measured(yardstick, lambda s: 0.5 / s),
        [4, 1, 2],
        [0, 1, 2],
        200,
        yardstick.floor([0, 1, 2]),
        lambda steps: 2 * steps,
        lambda *call: calls.append(call),
    )
    assert [call[:2] for call in calls] == [(i, 9) for i in range(1, 10)]
    return result


def test_table_fields(table):
    assert [row["steps"] for row in table["rows"]] == [1, 2, 4]
    assert [row["nfe"] for row in table["rows"]] == [2, 4, 8]
    assert table["samples"] == 200 and table["seeds"] == [0, 1, 2]
    names = {f"{metric}{part}" for metric in metrics.chosen(("features",)) for part in ("", "_held_out")}
    assert set(table["floor"]) == names
    fields = {"steps", "nfe", "seconds_per_image"} | {n + s for n in names for s in ("", "_spread", "_seeds")}
    for row in table["rows"]:
        assert set(row) == fields
        assert row["seconds_per_image"] == pytest.approx(0.01 * row["steps"])
        for name in names:
            assert row[name] == pytest.approx(np.mean(row[f"{name}_seeds"]))
            assert row[f"{name}_spread"] == pytest.approx(np.std(row[f"{name}_seeds"], ddof=1))
    assert json.loads(json.dumps(table, allow_nan=False)) == table


def test_table_numbers(table):
    """The mean shift alone gives 16 · (0.5 / steps)², and each entry is the metric on the samples."""
    row = table["rows"][1]
    images = data(1001, 200) + np.float32(0.25)
    used = metrics.chosen(("features",))
    for name, metric in used.items():
        for suffix, part in (("", data(0, 300)), ("_held_out", data(1, 100))):
            expected = metric(images.reshape(200, -1), part.reshape(len(part), -1))
            assert row[f"{name}{suffix}_seeds"][1] == pytest.approx(expected, rel=1e-6)
    gain = table["rows"][0]["frechet"] - table["rows"][2]["frechet"]
    assert gain == pytest.approx(16 * (0.5**2 - 0.125**2), rel=0.15)
    x, y = data(0, 300).reshape(300, -1), data(1, 100).reshape(100, -1)
    for name, metric in used.items():
        assert table["floor"][f"{name}_held_out"] == pytest.approx(metric(x, y), rel=1e-6, abs=1e-9)
    assert 0 < table["floor"]["frechet"] < table["rows"][0]["frechet"]
    assert table["rows"][2]["precision"] > table["rows"][0]["precision"]


def test_a_set_against_itself(yardstick):
    figures = yardstick.figures(flat(0, 300), 300)
    assert figures["frechet"] < 1e-9 and figures["precision"] == 1 and figures["recall"] == 1
    batches = [
        ({"features": data(0, 300).reshape(300, -1)[i : i + 7]}, np.arange(300)[i : i + 7]) for i in range(0, 300, 7)
    ]
    for name, value in yardstick.figures(batches, 300).items():
        assert value == pytest.approx(figures[name], rel=1e-9, abs=1e-9), "it does not matter how samples come"


def test_a_line_in_metrics_is_all_that_a_metric_needs(monkeypatch):
    """The distance of the means, as a new file would have it, in the table, the floor and the markdown."""
    mean = metrics.Metric("mean", "features", "moments", lambda m: m.mean, lambda a, b: float(np.abs(a - b).mean()))
    monkeypatch.setitem(metrics.METRICS, "mean", mean)
    chosen, references = metrics.chosen(("features",), ("mean",)), {}
    for suffix, seed in (("", 0), (HELD_OUT, 1)):
        summary = gather(flat(seed, 200), needs_of(chosen, reference=True), 200, 100)
        references[suffix] = Reference({}, summary)
    yardstick = Yardstick(chosen, references, max_images=100)
    table = anystep.any_step_table(measured(yardstick, lambda s: 0.5 / s), [1, 2], [0], 200, yardstick.floor([0]))
    x, y = (data(seed, 200).reshape(200, -1) for seed in (0, 1))
    assert table["floor"]["mean_held_out"] == pytest.approx(np.abs(x.mean(0) - y.mean(0)).mean())
    samples = data(1000, 200).reshape(200, -1) + 0.5
    assert table["rows"][0]["mean"] == pytest.approx(np.abs(samples.mean(0) - x.mean(0)).mean(), rel=1e-5)
    assert table["monotone"]["metric"] == "mean" and "| mean | mean, held out |" in anystep.to_markdown(table)


def test_one_seed_has_no_spread(yardstick):
    row = anystep.any_step_table(measured(yardstick, lambda s: 0), [1], [5], 200, {})["rows"][0]
    assert row["nfe"] == 1 and row["frechet_spread"] == 0 and len(row["frechet_seeds"]) == 1


@pytest.mark.parametrize(
    "values, rises",
    [
        ([0.5, 0.4, 0.4], []),
        ([0.5, 0.4, 0.42], []),
        ([0.5, 0.4, 0.44], [[2, 4, 1.1]]),
        ([0.5, 0.6, 0.9], [[1, 2, 1.2], [2, 4, 1.5]]),
        ([0.0, 0.0, 0.0], []),
        ([0.5], []),
    ],
)
def test_monotone(values, rises):
    result = anystep.monotone([{"steps": s, "frechet": v} for s, v in zip((1, 2, 4), values)])
    assert [r[:2] for r in result["rises"]] == [r[:2] for r in rises]
    np.testing.assert_allclose([r[2] for r in result["rises"]], [r[2] for r in rises])
    assert ("nowhere" in result["verdict"]) == (not rises) and result["verdict"].endswith(".")
    assert all(f"{a} to {b} steps" in result["verdict"] for a, b, _ in rises)


def test_a_fall_counts_where_higher_is_better():
    rows = [{"steps": s, "precision": v} for s, v in zip((1, 2, 4), (0.5, 0.4, 0.6))]
    result = anystep.monotone(rows, "precision", "precision")
    assert [rise[:2] for rise in result["rises"]] == [[1, 2]] and "precision falls" in result["verdict"]


@pytest.mark.parametrize(
    "change, message", [({"steps": [0, 1]}, "steps"), ({"steps": []}, "steps"), ({"seeds": []}, "seeds")]
)
def test_table_refuses(change, message, yardstick):
    arguments = dict(measure=measured(yardstick, lambda s: 0), steps=[1], seeds=[0], count=200, floor={})
    with pytest.raises(ValueError, match=message) as error:
        anystep.any_step_table(**(arguments | change))
    assert "\n" not in str(error.value)


def test_markdown(table):
    text = anystep.to_markdown(table | {"step": 1234})
    lines = text.splitlines()
    named = table | {"reference": {"features": "inception 01", "images": 300, "data": "digits ab", "split": "train"}}
    first = anystep.to_markdown(named).splitlines()[0]
    assert "| FID |" in first and "| FID, held out |" in first and "| Fréchet |" in lines[0]
    assert len({line.count("|") for line in lines[:6]}) == 1
    assert lines[2].startswith("| 1 | 2 | ") and lines[5].startswith("| floor, halves |")
    assert table["monotone"]["verdict"] in text and "200 samples" in text and "training step 1234" in text


def test_write_keeps_what_was_there(table, tmp_path):
    anystep.write(table, tmp_path)
    anystep.write(table, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["any_step.json", "any_step.md", "any_step.png"]
    assert json.loads((tmp_path / "any_step.json").read_text()) == table
    assert (tmp_path / "any_step.md").read_text() == anystep.to_markdown(table)
    for step in (1, 2):
        anystep.write(table | {"step": step}, tmp_path)
    assert json.loads((tmp_path / "any_step.json").read_text())["step"] == 2
    assert json.loads((tmp_path / "any_step.1.json").read_text()) == table
    assert json.loads((tmp_path / "any_step.2.json").read_text())["step"] == 1
    with Image.open(tmp_path / "any_step.png") as picture:
        assert picture.width == 1050 and picture.height > 600  # and higher by its legend


def test_plot_of_several_tables(table, tmp_path):
    other = table | {"floor": table["floor"] | {"frechet": 0.3}}
    for name, tables in (("same", {"a": table, "b": table}), ("differ", {"a": table, "b": other})):
        anystep.plot(tables, tmp_path / f"{name}.png")
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_tables_of_different_references_are_not_plotted_together(table, tmp_path):
    a, b = (table | {"reference": {"data": name, "features": "pixels"}} for name in ("digits", "photos"))
    anystep.plot({"a": a, "b": dict(a)}, tmp_path / "same.png")
    with pytest.raises(ValueError, match="data 'photos', not 'digits'"):
        anystep.plot({"a": a, "b": b}, tmp_path / "differ.png")
    assert [path.name for path in tmp_path.iterdir()] == ["same.png"]
