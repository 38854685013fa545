"""The page of a run: every part is there, with the figures of its files, and a damaged file costs its part alone."""

import json

import numpy as np
import pytest
from sklearn.datasets import load_digits

import tim_jax
from tests.helpers import pages, reports, workdirs
from tests.helpers.configs import TINY_NETWORK
from tests.helpers.reports import NASTY, STEPS
from tim_jax.report import __main__ as report
from tim_jax.report import curves, run_page, setup
from tim_jax.report.reading import Folder
from tim_jax.transitions.sampling.samplers import SAMPLERS

SECTIONS = ["samples", "quality", "trajectories", "nearest", "curves", "diagnostics", "goodput", "configuration",
            "starts"]  # fmt: skip


def made(folder, *words):
    report.main([f"--workdir={folder}", *words])
    return pages.read((folder / "report.html").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(page, {file: what is in it}) of a run that has all files and no checkpoint, with pictures of noise."""
    folder = tmp_path_factory.mktemp("run") / f"a run & {'<b>'}"
    found = reports.undrawn_run(folder, np.random.default_rng(0), **{"data.path": NASTY})
    drawn = reports.drawn(np.random.default_rng(1))
    return pages.read(run_page.make(Folder(folder), drawn, "")), found | {"drawn": drawn}


def test_every_section_is_there_and_in_the_navigation(run):
    page, _ = run
    assert [each.attributes["id"] for each in page.one("main").all("section")] == SECTIONS
    assert [each.attributes["href"] for each in page.one("nav").all("a")] == [f"#{name}" for name in SECTIONS]
    assert page.one("h1").text == "a run & <b>" and page.all(class_="missing") == [page.one("noscript").one("p")]
    assert page.all(class_="warning") == []


def test_texts_of_files_are_texts(run):
    page, _ = run
    assert page.text.count(NASTY) >= 5 and page.one("ol", class_="classes").all("li")[1].text == NASTY
    assert NASTY in pages.section(page, "configuration").text and NASTY in pages.section(page, "quality").text


def test_the_any_step_table_has_the_figures_of_its_file(run):
    page, found = run
    table, section = found["any_step.json"], pages.section(page, "quality")
    names = [("frechet", "kernel", "precision", "novel"), reports.NAMES[3:]]
    for whole, columns in zip(section.all("table"), names, strict=True):
        lines = pages.rows(whole)
        titles = ["floor, halves", "floor, 500 samples"]
        assert [line[0] for line in lines] == ["1", "2", "4", *titles]
        for line, row in zip(lines, table["rows"], strict=False):
            assert pages.number(line[1]) == row["nfe"]
            for cell, name in zip(line[2:], columns, strict=False):
                assert pages.number(cell) == pytest.approx(row[name], rel=5e-3)
                assert float(cell.split("±")[1]) == pytest.approx(row[f"{name}_spread"], rel=0.5)
            assert pages.number(line[-1]) == pytest.approx(1000 * row["seconds_per_image"], rel=5e-3)
        for line, floor in zip(lines[3:], (table["floor"], table["floor_at_count"]), strict=True):
            shown = {name: pages.number(cell) for cell, name in zip(line[2:], columns, strict=False) if cell}
            assert shown == pytest.approx({name: floor[name] for name in columns if name in floor}, rel=5e-3)
        best = {cell.text for cell in whole.all("td", class_="best")}
        for name in set(columns) - {"novel"}:
            end = max if name.startswith("precision") else min
            value = end(row[name] for row in table["rows"])
            assert any(pages.number(text) == pytest.approx(value, rel=5e-3) for text in best)
        assert len(best) == 3
    plot = pages.data(section.one(data_component="chart"))
    for panel, name in zip(plot["panels"], [*reports.NAMES, "novel"], strict=True):
        (series,) = panel["series"]
        assert series["x"] == [row["nfe"] for row in table["rows"]]
        assert series["y"] == pytest.approx([row[name] for row in table["rows"]], rel=1e-6)
        assert series["spread"] == pytest.approx([row[f"{name}_spread"] for row in table["rows"]], rel=1e-6)
        floors = [floor[name] for floor in (table["floor"], table["floor_at_count"]) if name in floor]
        assert [line["y"] for line in panel["lines"]] == pytest.approx(floors, rel=1e-6)
    assert "uint8" in section.text and "0.1, 0.9" in section.text, "what is not known here is shown as it is"


def test_curves_have_the_values_of_their_file(run):
    page, found = run
    lines, section = found["metrics.jsonl"], pages.section(page, "curves")
    charts = {each.one("figcaption").text: pages.data(each) for each in section.all("figure", class_="chart")}
    for title, names in (("Loss", ["loss"]), ("Unweighted errors", ["error_equal", "error_moving"]),
                         ("Errors by noise level", ["error_by_level/0-0.2", "error_by_level/0.2-0.4"]),
                         ("novel", ["novel"]), ("Size of dF/dt", ["tangent_rms"])):  # fmt: skip
        (chart,) = [chart for caption, chart in charts.items() if caption.startswith(title)]
        for series, name in zip(chart["series"], names, strict=True):
            assert series["x"] == [line["step"] for line in lines]
            expected = [line[name] for line in lines]
            assert [value is None for value in series["y"]] == [value is None for value in expected]
            pairs = zip(series["y"], expected, strict=True)
            assert all(a == pytest.approx(b, rel=1e-6) for a, b in pairs if b is not None)
    table = {line[0]: line[1:] for line in pages.rows(section.one("table"))}
    values = [line["loss"] for line in lines]
    shown = [pages.number(cell) for cell in table["loss"][1:]]
    assert shown == pytest.approx([values[0], min(values), max(values), values[-1]], rel=5e-4)
    assert f"{lines[-1]['goodput']:.1%}" in pages.section(page, "goodput").text


def test_where_the_time_went_is_that_of_its_file(run):
    """Of two starts with 150 s between them, where 15 of 60 s of steps were made again."""
    page, _ = run
    times = {"steps": "1.8 min", "compiling": "1.3 min", "steps done twice": "15 s", "down between starts": "2.5 min"}
    table = pages.section(page, "goodput").one("table")
    assert "in 2 recorded starts, with what came after the last line of metrics" in table.attributes["aria-label"]
    rows = {name: (time, share) for name, time, share in pages.rows(table)}
    assert {name: time for name, (time, _) in rows.items()} == times
    assert rows["steps"][1] == "30.0%" and rows["down between starts"][1] == "42.9%"


def test_cells_by_t_and_r_are_those_of_the_file(run):
    page, found = run
    section, levels = pages.section(page, "diagnostics"), found["diagnostics.json"]["levels"]
    for table, name in zip(section.all("table", class_="heat"), ("error", "tangent"), strict=True):
        *lines, bottom = pages.rows(table)
        assert [float(text) for text in bottom[1:]] == pytest.approx(levels, rel=1e-2)
        for r, line in zip(reversed(range(len(levels))), lines, strict=True):
            for t, cell in enumerate(line[1:]):
                value = found["diagnostics.json"][name][t][r]
                assert cell == "" if value is None else pages.number(cell) == pytest.approx(value, rel=0.06)
        shades = [(pages.number(cell.text), int(cell.classes[1][1:])) for cell in table.all("td", class_="shade")]
        assert sorted(shades) == sorted(shades, key=lambda pair: (pair[1], pair[0])), "larger is stronger"
    chart = pages.data(section.all(data_component="chart")[0])
    assert [series["x"] for series in chart["series"]] == [levels, levels]


def test_the_slider_has_every_picture(run):
    page, found = run
    drawn, section = found["drawn"], pages.section(page, "samples")
    data = pages.data(section.one(data_component="samples"))
    assert data["steps"] == list(STEPS) and data["captions"] == drawn.captions
    for name, of_sampler, nfe in zip(data["samplers"], data["images"], data["nfe"], strict=True):
        assert nfe == [drawn.evaluations[name][steps] for steps in STEPS]
        for steps, uris in zip(STEPS, of_sampler, strict=True):
            np.testing.assert_array_equal([pages.pixels(uri) for uri in uris], drawn.samples[name][steps])
    shown = [pages.pixels(image.attributes["src"]) for image in section.one("ul").all("img")]
    np.testing.assert_array_equal(shown, drawn.samples["flow_map"][4])
    slider = section.one("input", type="range").attributes
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "2", "2") and slider["aria-label"]
    for part, (steps, path) in zip(pages.section(page, "trajectories").all(data_choice="2")
                                   + pages.section(page, "trajectories").all(data_choice="4"),
                                   sorted(drawn.paths.items()), strict=True):  # fmt: skip
        images = np.stack([pages.pixels(image.attributes["src"]) for image in part.all("img")])
        expected = path.states.swapaxes(0, 1).reshape(images.shape)
        np.testing.assert_array_equal(images, expected)
        assert len(part.all("th", scope="col")) == steps + 1
    pairs = pages.section(page, "nearest").all("img")
    np.testing.assert_array_equal([pages.pixels(image.attributes["src"]) for image in pairs[1::2]], drawn.nearest[1])


def test_the_configuration_is_held_against_base(run):
    page, _ = run
    tables = pages.section(page, "configuration").all("table")
    changed = {line[0]: line[1:] for line in pages.rows(tables[0])}
    assert changed["model.width"] == ["0", "40"] and changed["data.path"] == ["''", NASTY]
    assert "model.dropout" not in changed and pages.rows(tables[1]) == [["training.steps", "4000", "300"]]
    assert len(pages.rows(tables[2])) == len(setup.base())
    assert len(pages.rows(pages.section(page, "starts").one("table"))) == 2


@pytest.mark.slow
def test_samples_are_those_of_the_run_and_neighbours_those_of_its_data(tmp_path, data_directory, capsys):
    """Drawn by the command, and beside that by `tim_jax.load`; neighbours looked for among scikit-learn's digits."""
    changes = TINY_NETWORK | {"loader.directory": str(data_directory)}
    folder = workdirs.workdir(tmp_path / "run", "digits", **changes)
    with workdirs.one_device():
        page = made(folder, "--samples=3", "--steps=2,1", "--samplers=euler,heun")
        tim = tim_jax.load(folder, sampling={"sampler": "heun"})
    assert "written: " in capsys.readouterr().out
    data = pages.data(pages.section(page, "samples").one(data_component="samples"))
    assert data["samplers"] == ["euler", "heun"] and data["captions"] == ["0", "1", "2"] and data["steps"] == [1, 2]
    for shown, steps in zip(data["images"][1], data["steps"], strict=True):
        expected = [np.asarray(image.convert("RGB")) for image in tim([0, 1, 2], steps=steps)]
        assert np.abs(np.stack([pages.pixels(uri) for uri in shown]).astype(int) - expected).max() <= 1
    states = pages.section(page, "trajectories").one(data_choice="2").all("img")
    np.testing.assert_array_equal(pages.pixels(states[2].attributes["src"]), pages.pixels(data["images"][0][1][0]))
    digits = np.rint(load_digits().images * 255 / 16)
    pairs = pages.section(page, "nearest").all("figure")
    for pair in pairs:
        one, other = (pages.pixels(image.attributes["src"])[..., 0].astype(float) for image in pair.all("img"))
        told = float(pair.one("figcaption").text.split()[-1])
        assert told == pytest.approx(np.linalg.norm(one - other) / 127.5, abs=6e-3)
        distances = np.sqrt(((digits - one) ** 2).sum((1, 2))) / 127.5
        assert distances.min() <= told + 0.02, "among all digits, of which four fifths are trained on"
    missing = {section: pages.section(page, section).one(class_="missing").one("code").text
               for section in ("quality", "diagnostics")}  # fmt: skip
    assert missing == {"quality": f"tim-jax evaluate --workdir={folder}",
                       "diagnostics": f"tim-jax diagnose --workdir={folder}"}  # fmt: skip


def test_a_run_without_a_checkpoint_has_a_page_that_says_so(tmp_path, capsys, caplog):
    folder = tmp_path / "run"
    reports.undrawn_run(folder, np.random.default_rng(0), **TINY_NETWORK)
    page = made(folder)
    assert "has no checkpoint yet" in pages.section(page, "samples").one(class_="missing").text
    assert "no samples are drawn" in caplog.text and len(pages.section(page, "curves").all("figure")) > 3


def test_a_run_that_has_only_been_started_has_a_page(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    reports.workdir.record_start(folder, reports.load_config("digits_tiny", {}))
    page = made(folder, "--samples=0", f"--out={folder / 'report.html'}")
    commands = [each.text for each in page.one("main").all("code") if each.text.startswith("tim-jax")]
    assert {command.split()[1] for command in commands} == {"report", "evaluate", "train", "diagnose"}
    assert "--samples=0" in pages.section(page, "samples").text


DAMAGE = {
    "any_step.json": ("quality", '{"rows": [{"steps": 1, "frechet_seeds": [1], "frechet": "low"}'),
    "diagnostics.json": ("diagnostics", '{"levels": [0, 1], "error": 3}'),
    "metrics.jsonl": ("curves", '{"step": 5, "loss": 2.0}\n{"step": "x"}\n[1]\n\x00\xff{"st'),
    "starts.jsonl": ("starts", '{"time": 3}\n{"versions": [1'),
    "classes.json": ("samples", '{"0": "zero"}'),
    "config.json": ("configuration", '{"data": '),
    "nearest.png": ("nearest", "no picture"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_costs_no_other_part(name, tmp_path):
    folder = tmp_path / "run"
    reports.undrawn_run(folder, np.random.default_rng(0))
    whole = made(folder, "--samples=0")
    section, content = DAMAGE[name]
    (folder / name).write_text(content)
    page = made(folder, "--samples=0")
    assert [each.attributes["id"] for each in page.one("main").all("section")] == SECTIONS
    for other in set(SECTIONS) - {section, "goodput", "configuration"}:
        assert pages.section(page, other).text == pages.section(whole, other).text
    if name.endswith("jsonl") or name in ("classes.json", "config.json"):
        assert name in page.one(class_="warning").text


@pytest.mark.parametrize("content", [[], "x", {"rows": []}, {"rows": [{"steps": 1}]}, {"rows": [None]}, {"rows": 3}])
def test_files_that_are_json_and_nothing_else_stop_nothing(content, tmp_path):
    folder = tmp_path / "run"
    reports.undrawn_run(folder, np.random.default_rng(0))
    for name in ("any_step.json", "diagnostics.json", "classes.json"):
        (folder / name).write_text(json.dumps(content))
    page = made(folder, "--samples=0")
    assert "tim-jax evaluate" in pages.section(page, "quality").text


@pytest.mark.parametrize(
    "words, named",
    [
        ([], ["--workdir=", "holds neither a run nor an ablation", "tim-jax train"]),
        (["--samples=-1"], ["--samples is -1", "0, for none"]),
        (["--samples=0", "--steps=1"], ["--steps is '1'", "--samples=0"]),
        (["--steps=0"], ["--steps has 0"]),
        (["--steps=x"], ["--steps is 'x'"]),
        (["--out=page.pdf"], ["--out is 'page.pdf'", ".html"]),
        (["--sample=3"], ["--sample=3", "--samples"]),
    ],
)
def test_mistakes_are_answered_in_one_line(words, named, tmp_path, capsys):
    error = workdirs.told(report.main, [f"--workdir={tmp_path}", *words], capsys)
    assert all(word in error for word in named) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words, named",
    [
        (["--samplers=eulr"], ["--samplers has 'eulr'", *SAMPLERS]),
        (["--config.model.width=8"], ["model.width"]),
        (["--samples=0", "--config.sampling.guidance=2"], ["--config.sampling.guidance", "--samples=0"]),
        (["--config.mesh.fsdp=3"], ["mesh.fsdp"]),
    ],
)
def test_mistakes_about_a_run_leave_its_folder_alone(words, named, tmp_path, capsys):
    folder = tmp_path / "run"
    reports.undrawn_run(folder, np.random.default_rng(0))
    before = workdirs.contents(folder)
    error = workdirs.told(report.main, [f"--workdir={folder}", *words], capsys)
    assert all(word in error for word in named) and workdirs.contents(folder) == before


def test_long_runs_are_thinned(tmp_path):
    folder = tmp_path / "run"
    reports.undrawn_run(folder, np.random.default_rng(0))
    values = np.random.default_rng(0).normal(size=20_000)
    (folder / curves.FILE).write_text(
        "".join(json.dumps({"step": i, "loss": value}) + "\n" for i, value in enumerate(values.tolist()))
    )
    page = made(folder, "--samples=0")
    (series,) = pages.data(pages.section(page, "curves").one("figure", class_="chart"))["series"]
    assert len(series["x"]) <= curves.POINTS
    assert (min(series["y"]), max(series["y"])) == pytest.approx((values.min(), values.max()), rel=1e-6)


def test_steered_samples_are_compared_within_a_task(tmp_path):
    folder = tmp_path / "run"
    reports.undrawn_run(folder, np.random.default_rng(0))
    values = {("greyscale", "flowchef"): 3.0, ("greyscale", "dps"): 2.0, ("gaussian_blur", "flowchef"): 0.5,
              ("gaussian_blur", "dps"): 0.75}  # fmt: skip
    lines = [
        {"operator": operator, "steering": method, "weights": "slow", "sampler": "euler", "guidance": 1.0,
         "guidance_interval": None, "failures": {}, "protocol": {"line": "Protocol"},
         "rows": [{"steps": 2, "nfe": 2, "frechet": value, "frechet_spread": 0.01}]}
        for (operator, method), value in values.items()
    ]  # fmt: skip
    sweep = {"lines": lines, "metric": "frechet", "samples": 50, "seeds": [0, 1], "best": {"overall": None}}
    (folder / "sweep.json").write_text(json.dumps(sweep))
    section = pages.section(made(folder, "--samples=0"), "sweep")
    rows = section.one("tbody").all("tr")
    marked = ["best" in row.all("td")[-1].classes for row in rows]
    assert [line[:2] for line in pages.rows(section.one("table"))] == [list(way) for way in values]
    assert marked == [False, True, True, False] and "Best of all" not in section.text


def test_a_sweep_has_a_section_of_its_own(tmp_path):
    """A line for each way of sampling; without guidance, a point belongs to the curves of all intervals."""
    folder, rng = tmp_path / "run", np.random.default_rng(0)
    reports.undrawn_run(folder, rng)
    ways = [(1.0, None), (1.5, [0.0, 1.0]), (1.5, [0.2, 0.8]), (2.0, [0.0, 1.0])]
    lines = []
    for guidance, interval in ways:
        figures = [{"frechet": float(rng.uniform(1, 2)), "frechet_spread": 0.01} for _ in (1, 2)]
        rows = [{"steps": steps, "nfe": 2 * steps, **row} for steps, row in zip((1, 2), figures, strict=True)]
        way = {"weights": "slow", "sampler": "euler", "guidance": guidance, "guidance_interval": interval}
        lines.append(way | {"rows": rows, "failures": {}, "protocol": {"line": f"Protocol: {NASTY}"}})
    lines[3] |= {"rows": lines[3]["rows"][:1], "failures": {"2": "not finite"}}
    best = {axis: lines[0][axis] for axis in ("weights", "sampler", "guidance", "guidance_interval")}
    best |= {"steps": 2, "nfe": 4, "value": 0.75, "spread": 0.01, "second": "guidance 2", "close": True}
    sweep = {"lines": lines, "metric": "frechet", "samples": 50, "seeds": [0, 1], "best": {"overall": best}}
    (folder / "sweep.json").write_text(json.dumps(sweep))
    section = pages.section(made(folder, "--samples=0"), "sweep")
    shown = pages.rows(section.one("table"))
    assert [line[:4] for line in shown] == [
        ["slow", "euler", "1", ""], ["slow", "euler", "1.5", "[0, 1]"], ["slow", "euler", "1.5", "[0.2, 0.8]"],
        ["slow", "euler", "2", "[0, 1]"],
    ]  # fmt: skip
    for line, of in zip(shown, lines, strict=True):
        for cell, row in zip(line[4:], of["rows"], strict=False):
            assert pages.number(cell) == pytest.approx(row["frechet"], rel=5e-3)
    assert shown[3][5] == "failed" and "not finite" in section.text and NASTY in section.text
    for column in range(2):
        values = [of["rows"][column]["frechet"] for of in lines if len(of["rows"]) > column]
        (marked,) = [row.all("td")[3 + column].text for row in section.one("tbody").all("tr")
                     if "best" in row.all("td")[3 + column].classes]  # fmt: skip
        assert pages.number(marked) == pytest.approx(min(values), rel=5e-3)
    by_nfe, by_guidance = pages.data(section.one(data_component="chart"))["panels"]
    assert [series["x"] for series in by_nfe["series"]] == [[2, 4], [2, 4], [2, 4], [2]]
    curves_by = {series["name"]: series["x"] for series in by_guidance["series"]}
    assert curves_by == {
        "in [0, 1], 1 step": [1.0, 1.5, 2.0], "in [0, 1], 2 steps": [1.0, 1.5],
        "in [0.2, 0.8], 1 step": [1.0, 1.5], "in [0.2, 0.8], 2 steps": [1.0, 1.5],
    }  # fmt: skip
