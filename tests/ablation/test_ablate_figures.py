"""Every figure that an ablation prints, draws or stores, against another computation of it."""

import json
import math
import re
import statistics

import pytest
from etils import epath

from tests.helpers.ablations import tiny
from tests.helpers.figures import unreadable
from tim_jax.ablation import Ablation, budget, job, runs, table
from tim_jax.evaluation import figures
from tim_jax.training.preemption import Stop

STEPS, SEEDS = {1: 2, 4: 8, 16: 32}, 3  # sampler's steps → network evaluations
FIGURES = ("frechet", "frechet_held_out")
VARIANTS = {"quick": {}, "slow_one": {"model.depth": 2}, "other": {"model.depth": 3}}
COSTS = {"quick": 1.0, "slow_one": 2.5, "other": 0.8}
LINES = [f"{name} ({ema})" for name in VARIANTS for ema in ("slow", "online", "sigma_rel:0.1")]


def value(*of):
    """A figure of a line, seed, count and distance, irregular but always the same."""
    return round(1 + abs(math.sin(sum((i + 2.3) * sum(map(ord, str(one))) for i, one in enumerate(of)))), 6)


def measured(line, seed):
    rows = []
    for steps, nfe in STEPS.items():
        row = {"steps": steps, "nfe": nfe, "seconds_per_image": 0.1}
        for name in FIGURES:
            one = value(line, seed, steps, name)
            row |= {name: one, f"{name}_spread": 0.0, f"{name}_seeds": [one]}
        rows.append(row)
    return {"rows": rows, "floor": {name: value("floor", seed, name) for name in FIGURES}, "samples": 512}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(ablation, folder, text of the report, its JSON, the figure that was drawn) of a whole ablation of results."""
    folder = epath.Path(tmp_path_factory.mktemp("figures"))
    base = tiny(training__steps="120", posthoc_ema__sigma_rel="0.1")
    more = {"emas": ("online", "sigma_rel:0.10"), "seeds": SEEDS, "baselines": {"teacher": "runs/t"}}
    ablation, drawn = Ablation(base, VARIANTS, equal="flops", **more), []
    ablation.check()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            budget, "by_flops", lambda ablation, missing, progress: {each: {"cost": COSTS[each]} for each in missing}
        )
        budget.make(ablation, folder, list(VARIANTS), lambda line: None)
        for member in ablation.members():
            tables = {ema: measured(f"{member.variant} ({ema})", member.seed) for ema in ("slow", "online")}
            result = {"seconds": 20.0, "table": tables["slow"]}
            if member.variant == "teacher":
                of = {"checkpoint": "runs/t", "ema": "slow", "steps": 4600, "fingerprint": "ab"}
                result = {"seconds": 1.0, "table": measured("teacher", member.seed), "baseline": of}
            else:
                others = {
                    ema: measured(f"{member.variant} ({ema})", member.seed) for ema in ("online", "sigma_rel:0.1")
                }
                result |= {"steps": 1, "train_seconds": value(member, "seconds") * 100, "emas": others}
            runs.write(folder / str(member), result)
        patch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
        text = table.write(ablation, folder, "mine")
    return ablation, folder, text, json.loads((folder / "ablation.json").read_text()), drawn[0]


def by_seed(line, steps, name):
    return [value(line, seed, steps, name) for seed in range(SEEDS)]


def cells(text, name):
    """{first cell: the others} of the table of a distance."""
    part = text.split("Fréchet distance ")[1 + FIGURES.index(name)]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_steps_are_of_equal_cost(made):
    ablation, folder, text, *_ = made
    planned = budget.read(folder)["variants"]
    for name, cost in COSTS.items():
        assert planned[name]["steps"] * cost == pytest.approx(120, abs=cost / 2)
        for line in (line for line in LINES if line.startswith(f"{name} (")):
            assert cells(text, "frechet")[line][:2] == [f"{planned[name]['steps']:,}", f"{cost:.2f}"]


@pytest.mark.parametrize("name", FIGURES)
def test_cells_are_means_and_spreads_over_seeds_and_the_smallest_is_bold(made, name):
    _, _, text, found, _ = made
    rows = cells(text, name)
    assert rows["variant"][3:] == [str(nfe) for nfe in STEPS.values()]
    best = {
        steps: min(LINES, key=lambda line, steps=steps: statistics.fmean(by_seed(line, steps, name))) for steps in STEPS
    }
    for line in [*LINES, "teacher"]:
        about = (found["variants"] | found["baselines"])[line]
        for (steps, nfe), cell, row in zip(STEPS.items(), rows[line][3:], about["rows"], strict=True):
            values = by_seed(line, steps, name)
            mean, spread = statistics.fmean(values), statistics.stdev(values)
            expected = f"{mean:.3g} ± {spread:.1g}"
            assert cell == (f"**{expected}**" if line == best[steps] else expected)
            assert (row["steps"], row["nfe"], row[f"{name}_seeds"]) == (steps, nfe, values)
            assert (row[name], row[f"{name}_spread"]) == pytest.approx((mean, spread))
    floor = statistics.fmean(value("floor", seed, name) for seed in range(SEEDS))
    assert rows["floor, halves"][3] == f"{floor:.3g}" and found["floor"][name] == pytest.approx(floor)


def test_seconds_are_those_of_training(made):
    _, _, text, found, _ = made
    for name in VARIANTS:
        seconds = statistics.fmean(value(f"{name}/seed_{seed}", "seconds") * 100 for seed in range(SEEDS))
        for line in (line for line in LINES if line.startswith(f"{name} (")):
            assert cells(text, "frechet")[line][2] == f"{seconds:.0f}"
            assert found["variants"][line]["train_seconds"] == pytest.approx(seconds)
    assert cells(text, "frechet")["teacher"][:3] == ["4,600", "not trained here", ""]


@pytest.mark.parametrize("name", FIGURES)
def test_who_is_ahead_and_by_how_much(made, name):
    """A lead within the spread of the difference, √(s₁² + s₂²), is said to be."""
    _, _, text, found, _ = made
    said = next(line for line in text.splitlines() if line.startswith(f"Ahead {table.DISTANCES[name]}"))
    for steps, nfe in STEPS.items():
        ranked = sorted(LINES, key=lambda line, steps=steps: statistics.fmean(by_seed(line, steps, name)))
        first, second = (by_seed(line, steps, name) for line in ranked[:2])
        lead = statistics.fmean(second) - statistics.fmean(first)
        spread = math.sqrt(statistics.variance(first) + statistics.variance(second))
        about = found["winners"][name][str(nfe)]
        assert (about["variant"], about["second"]) == tuple(ranked[:2])
        assert (about["lead"], about["lead_spread"]) == pytest.approx((lead, spread))
        close = f" (within the spread of {ranked[1]})" if lead <= spread else ""
        assert f"{nfe}: {ranked[0]}{close}" in re.split(r"(?<=\w|\)), (?=\d+:)|evaluations: |\.$", said)


def test_the_plot_shows_the_table(made):
    """One line for each EMA, of its variant's colour; the band is one spread wide on each side."""
    _, _, _, found, figure = made
    everything = found["variants"] | found["baselines"]
    for axes, name in zip(figure.axes, FIGURES, strict=True):
        lines = {line.get_label(): line for line in axes.lines}
        assert list(lines)[:-1] == [*LINES, "teacher, not trained here"]
        for (label, about), band in zip(everything.items(), axes.collections, strict=True):
            line = lines[label if label in LINES else f"{label}, not trained here"]
            assert line.get_xdata().tolist() == list(STEPS.values())
            mean = [statistics.fmean(by_seed(label, steps, name)) for steps in STEPS]
            spread = [statistics.stdev(by_seed(label, steps, name)) for steps in STEPS]
            assert line.get_ydata().tolist() == pytest.approx(mean)
            edges = band.get_paths()[0].vertices
            for nfe, middle, half in zip(STEPS.values(), mean, spread, strict=True):
                heights = edges[edges[:, 0] == nfe, 1]
                assert (heights.min(), heights.max()) == pytest.approx((max(middle - half, middle / 4), middle + half))
        styles = {label: (lines[label].get_color(), lines[label].get_linestyle()) for label in LINES}
        assert len(set(styles.values())) == len(LINES) and len({colour for colour, _ in styles.values()}) == 3
        assert len({dashes for _, dashes in styles.values()}) == 3
        assert lines["floor, halves"].get_ydata()[0] == pytest.approx(found["floor"][name])
    assert unreadable(figure) == []


def test_what_is_said_while_it_runs(made, capsys, monkeypatch):
    """Numbers of runs, steps and the time that is left; the runs that were measured before are not counted."""
    ablation, folder, *_ = made
    members = [member for member in ablation.members() if member.variant != "teacher"]
    planned, results = budget.read(folder), {member: runs.read(folder / str(member)) for member in members}
    gone = [member for member in members if member.seed == 2]
    monkeypatch.setattr(runs, "read", lambda path: None if str(path).endswith("seed_2") else read(path))
    read = {folder / str(member): result for member, result in results.items()}.get

    def run_one(ablation, about, folder, member, stop):
        return results[member] | {"seconds": 40.0}

    monkeypatch.setattr(job, "run_one", run_one)
    assert job.run_all(ablation, planned, folder, members, Stop()) == 0
    said = capsys.readouterr().out.splitlines()
    begun = [line for line in said if line.startswith("[")]
    spent = [20.0] * 6
    for i, member in enumerate(gone):
        left = statistics.fmean(spent) * (len(gone) - i)
        steps = planned["variants"][member.variant]["steps"]
        assert begun[i] == f"[{7 + i}/9] {member}: {steps} steps; 0 s so far, about {left:.0f} s left"
        spent.append(40.0)
        figures = ", ".join(f"{row['nfe']}: {row['frechet']:.4g}" for row in results[member]["table"]["rows"])
        assert f"{member}: frechet {figures}" in said
        online = [value(f"{member.variant} (online)", 2, steps, "frechet") for steps in STEPS]
        shown = ", ".join(f"{nfe}: {one:.4g}" for nfe, one in zip(STEPS.values(), online, strict=True))
        assert f"{member} (online): frechet {shown}" in said


def test_baselines_alone_are_shown(made, tmp_path):
    ablation, folder, *_ = made
    found = table.collect(ablation, folder, [member for member in ablation.members() if member.variant == "teacher"])
    table.plot(found, epath.Path(tmp_path / "plot.png"), "mine")
    assert "| teacher | 4,600 |" in table.to_markdown(found, "mine") and (tmp_path / "plot.png").exists()


def test_averages_that_are_not_measured_yet_are_told(made, tmp_path):
    """A folder whose runs were measured with the weights of samples alone goes on."""
    ablation, *_ = made
    folder = epath.Path(tmp_path)
    member = ablation.members()[0]
    result = {"seconds": 1.0, "steps": 1, "train_seconds": 1.0, "table": measured("quick (slow)", 0)}
    runs.write(folder / str(member), result)
    assert job.lacking(ablation, member, result)
    assert not job.lacking(ablation, member, result | {"emas": {"online": {}, "sigma_rel:0.1": {}}})
    text = table.to_markdown(table.collect(ablation, folder, [member]), "mine")
    assert "- quick (online): 0 of 1 runs" in text and "- quick (slow)" not in text


@pytest.mark.parametrize("emas", [("fast",), ("sigma_rel:0.4",), ("slow", "")])
def test_averages_that_a_variant_does_not_have_are_refused(emas):
    base = tiny(posthoc_ema__sigma_rel="0.1")
    with pytest.raises(ValueError, match="^emas is '.*'; it must be one of online, slow, sigma_rel:0.1 or sigma_rel:"):
        Ablation(base, VARIANTS, emas=emas).check()
