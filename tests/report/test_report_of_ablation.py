"""The page of an ablation: tables with winners, curves of every run, differences, failures; made without its file."""

import json
import pathlib

import numpy as np
import pytest

from tests.helpers import pages, reports, workdirs
from tests.helpers.reports import NASTY
from tim_jax.ablation import runs
from tim_jax.report import __main__ as report

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECTIONS = ["figures", "spread", "curves", "differences", "variants", "failures", "configuration", "starts"]


def made(folder, *words):
    report.main([f"--workdir={folder}", *words])
    return pages.read((folder / "report.html").read_text())


@pytest.fixture(scope="module")
def ablation(tmp_path_factory):
    """(page, {run: its result}, folder) of an ablation with a run that failed and a baseline."""
    folder = tmp_path_factory.mktemp("ablation") / "mine"
    found = reports.ablation(folder, np.random.default_rng(0))
    (folder / "tim" / "seed_0" / "report.html").write_text("of the run")
    return made(folder), found, folder


def test_every_section_is_there(ablation):
    page, _, _ = ablation
    assert [each.attributes["id"] for each in page.one("main").all("section")] == SECTIONS
    assert "the same operations" in page.one(class_="lead").text and page.all(class_="warning") == []
    assert NASTY in page.text


def test_tables_have_means_over_seeds_and_mark_the_winners(ablation):
    page, found, _ = ablation
    tables = pages.section(page, "figures").all("table")
    for table, name in zip(tables, ("frechet", "frechet_held_out"), strict=True):
        lines = {line[0]: line for line in pages.rows(table)}
        assert list(lines) == ["tim", "wide", "teacher", "floor, halves"]
        assert lines["tim"][1:4] == ["40", "1.00", "2 of 2"] and lines["wide"][3] == "1 of 2"
        for k in range(2):
            values = {
                variant: [result["table"]["rows"][k][name] for run, result in found.items()
                          if run.startswith(variant) and "table" in result]
                for variant in ("tim", "wide", "teacher")
            }  # fmt: skip
            for variant, of in values.items():
                cell = lines[variant][4 + k]
                assert pages.number(cell) == pytest.approx(np.mean(of), rel=5e-3)
                if len(of) > 1:
                    assert float(cell.split("±")[1]) == pytest.approx(np.std(of, ddof=1), rel=0.5)
            winner = min(("tim", "wide"), key=lambda variant: np.mean(values[variant]))
            best = [cell.text for row in table.all("tr") for cell in row.all("td")[3 + k : 4 + k]
                    if "best" in cell.classes]  # fmt: skip
            assert best == [lines[winner][4 + k]], "of variants, since a baseline wins nothing"
        floors = [result["table"]["floor"][name] for result in found.values() if "table" in result]
        assert pages.number(lines["floor, halves"][4]) == pytest.approx(np.mean(floors), rel=5e-3)
    panel = pages.data(pages.section(page, "figures").one(data_component="chart"))["panels"][0]
    assert [series["name"] for series in panel["series"]] == ["tim", "wide", "teacher"]
    of_tim = [np.mean([found[f"tim/seed_{s}"]["table"]["rows"][k]["frechet"] for s in (0, 1)]) for k in range(2)]
    assert panel["series"][0]["x"] == [1, 4] and panel["series"][0]["y"] == pytest.approx(of_tim, rel=1e-6)


def test_seeds_curves_and_differences_are_those_of_the_files(ablation):
    page, found, folder = ablation
    data = pages.data(pages.section(page, "spread").one(data_component="dots"))
    assert data["columns"] == [1, 4] and [row["name"] for row in data["rows"]] == ["tim", "wide", "teacher"]
    of_wide = data["rows"][1]["values"]["frechet_held_out"]
    rows = found["wide/seed_0"]["table"]["rows"]
    assert of_wide == [pytest.approx([row["frechet_held_out"]], rel=1e-6) for row in rows]
    panels = pages.data(pages.section(page, "curves").one(data_component="chart"))["panels"]
    loss = next(panel for panel in panels if panel["name"] == "loss")
    assert {series["group"] for series in loss["series"]} == {"tim", "wide"} and len(loss["series"]) == 4
    lines = [json.loads(line) for line in (folder / "wide" / "seed_1" / "metrics.jsonl").read_text().splitlines()]
    (series,) = [series for series in loss["series"] if series["name"] == "wide, seed 1"]
    assert series["y"] == pytest.approx([line["loss"] for line in lines], rel=1e-6)
    assert pages.rows(pages.section(page, "differences").one("table")) == [["model.width", "64", "128"]]
    assert f"wide/seed_1 failed: ValueError: no luck {NASTY}" in pages.section(page, "failures").text


def test_links_lead_to_the_reports_of_runs(ablation):
    page, _, folder = ablation
    links = pages.section(page, "variants").all("a")
    assert [link.attributes["href"] for link in links] == ["tim/seed_0/report.html"]
    assert (folder / links[0].attributes["href"]).read_text() == "of the run"
    report.main([f"--workdir={folder}", f"--out={folder.parent / 'elsewhere' / 'page.html'}"])
    page = pages.read((folder.parent / "elsewhere" / "page.html").read_text())
    (href,) = [link.attributes["href"] for link in pages.section(page, "variants").all("a")]
    assert (folder.parent / "elsewhere" / href).resolve() == (folder / "tim/seed_0/report.html").resolve()


def test_an_ablation_of_before_has_a_page(tmp_path):
    """That of the notebooks, whose runs have no workdirs any more."""
    folder = reports.copied(ROOT / "notebooks" / "ablation", tmp_path / "ablation")
    page = made(folder)
    lines = {line[0]: line for line in pages.rows(pages.section(page, "figures").all("table")[0])}
    results = [runs.read(ROOT / "notebooks" / "ablation" / "tim" / f"seed_{seed}") for seed in (0, 1)]
    expected = np.mean([result["table"]["rows"][0]["frechet"] for result in results])
    assert pages.number(lines["tim"][4]) == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("name", ["plan.json", "tim/seed_0/result.json", "tim/seed_0/metrics.jsonl"])
@pytest.mark.parametrize("content", ['{"table": {"rows": [', '{"table": {"rows": [3]}, "variants": {"tim": 3}}', "[]"])
def test_damaged_files_leave_the_rest(name, content, tmp_path):
    folder = tmp_path / "mine"
    reports.ablation(folder, np.random.default_rng(0))
    (folder / name).write_text(content)
    page = made(folder)
    assert [each.attributes["id"] for each in page.one("main").all("section")] == SECTIONS
    assert "teacher" in pages.section(page, "figures").text


def test_an_ablation_that_was_only_planned_has_a_page(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "plan.json").write_text('{"equal": "time", "reference": "a", "variants": {"a": {"steps": 3}}}')
    page = made(folder)
    assert "No run is finished yet" in pages.section(page, "figures").text


@pytest.mark.parametrize("word", ["--samples=3", "--steps=1", "--samplers=heun", "--config.sampling.guidance=2"])
def test_what_is_drawn_of_runs_is_not_asked_of_an_ablation(word, tmp_path, capsys):
    folder = tmp_path / "mine"
    reports.ablation(folder, np.random.default_rng(0))
    assert "holds an ablation" in workdirs.told(report.main, [f"--workdir={folder}", word], capsys)
