"""Every figure that the project draws can be read: no text on another, none cut off, no curve through a legend."""

from fractions import Fraction

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from tests.helpers.figures import unreadable
from tim_jax import data
from tim_jax.ablation import table
from tim_jax.data import summary
from tim_jax.data.plan import Bucket, BucketPlan
from tim_jax.evaluation import anystep, diagnostics, figures, sweep

LONG = "runs_of_the_whole_winter_with_every_augmentation_and_the_second_learning_rate_again"
NAMES = {"one": ["tim"], "many": [f"variant_{i}" for i in range(24)], "long": [f"{LONG}_{i}" for i in range(3)]}
STEPS = {"one": [4], "usual": [1, 2, 4, 8, 16, 32, 64], "all": list(range(1, 33)), "far": [1, 1000, 1024]}
VALUES = {"usual": (0.2, 5.0), "huge": (1e-9, 1e9), "equal": (1.0, 1.0), "narrow": (1.1, 1.15)}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, in place of their files."""
    found = []
    monkeypatch.setattr(figures, "save", lambda figure, path: found.append(figure))
    return found


def falling(ends, count):
    return np.geomspace(*ends[::-1], count) if count > 1 else np.array([ends[1]])


def any_step(names, steps, ends):
    def table(i):
        values = falling(ends, len(steps)) * (1 + i / 50)
        rows = [{"nfe": s, "frechet": v, "frechet_spread": v / 9} for s, v in zip(steps, values)]
        return {"rows": rows, "floor": {"frechet": ends[0] * (1 + i / 9)}, "monotone": {"metric": "frechet"}}

    anystep.plot({name: table(i) for i, name in enumerate(names)}, None)


def ablation(names, steps, ends):
    def about(i):
        values = falling(ends, len(steps)) * (1 + i / 50)
        keys = [f"{name}{end}" for name in table.DISTANCES for end in ("", "_spread")]
        return {"rows": [{"nfe": s} | {key: v / (1 + 5 * key.endswith("spread")) for key in keys}
                         for s, v in zip(steps, values)]}  # fmt: skip

    variants, floor = {name: about(i) for i, name in enumerate(names)}, dict.fromkeys(table.DISTANCES, ends[0])
    table.plot({"variants": variants, "baselines": {"teacher": about(2)}, "floor": floor}, None, names[0])


def swept(names, steps, ends, scales=(1.0,)):
    lines = []
    for i, name in enumerate(names):
        for scale in scales:
            values = falling(ends, len(steps)) * (1 + i / 50) * (1 + (scale - 1.5) ** 2)
            rows = [{"steps": s, "nfe": s, "frechet": v, "frechet_spread": v / 9} for s, v in zip(steps, values)]
            axes = {"weights": name, "sampler": "flow_map", "guidance": scale}
            interval = (0.0, 1.0) if scale != 1 else None
            lines.append(axes | {"plan": sweep.OWN_PLAN, "guidance_interval": interval, "rows": rows, "failures": {}})
    about = {"samples": 100, "seeds": [0, 1], "reference": {"features": "pixels"}, "floor": {"frechet": ends[0]}}
    sweep.plot(sweep.make(lines, about), None)


def guided(names, steps, ends):
    swept(names[:6], steps[:6], ends, (1.0, 1.25, 1.5, 2.0, 4.0))


CASES = [("many", "all", "huge"), ("long", "far", "narrow"), ("many", "usual", "usual"), ("one", "one", "equal")]


@pytest.mark.parametrize("plot", [any_step, ablation, swept, guided])
@pytest.mark.parametrize("names, steps, values", CASES)
def test_curves(plot, names, steps, values, drawn):
    plot(NAMES[names], STEPS[steps], VALUES[values])
    assert [unreadable(figure) for figure in drawn] == [[]]


@pytest.mark.parametrize("nodes, epsilons, values", [(2, 1, "equal"), (13, 12, "huge"), (60, 3, "narrow")])
def test_diagnostics(nodes, epsilons, values, drawn, monkeypatch):
    monkeypatch.setattr(diagnostics.files, "replace", lambda path, content: None)
    count = len(diagnostics.pairs(nodes)[0])
    matrix = diagnostics.matrix(nodes, falling(VALUES[values], count))
    steps = {0.1 / 3**i: matrix for i in range(epsilons)} | {diagnostics.EXACT: matrix}
    found = {"levels": np.linspace(0, 1, nodes), "difference": {"float32": steps, "bfloat16": steps}, "step": 10**6}
    found |= {"error": matrix, "tangent": matrix, "square": matrix**2, "rows": 4096}
    diagnostics.write(found, Nowhere())
    assert [unreadable(figure) for figure in drawn] == [[]] * 3


class Nowhere:
    """A folder that nothing is written to."""

    def __truediv__(self, name):
        return self


@pytest.mark.parametrize("buckets, images", [(1, 3), (64, 10**9)])
def test_bucket_plans(buckets, images):
    def bucket(i):
        return Bucket(64 * (i + 1), 64 * (buckets - i), 10**4, (images,), 0.123, (Fraction(images),))

    plan = BucketPlan(tuple(map(bucket, range(buckets))), {}, data.Fitting())
    figure = summary.picture(plan, 16, f"mixture of {LONG}, {LONG} and {LONG}")
    FigureCanvasAgg(figure)
    assert unreadable(figure) == []


def test_what_cannot_be_read_is_found():
    figure = figures.new(3, 2)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], label="a curve")
    axes.legend(loc="center")
    axes.text(0.1, 0.8, "one"), axes.text(0.12, 0.82, "other"), figure.text(0.9, 0.1, "over the edge")
    found = "\n".join(unreadable(figure))
    assert "'one' is on 'other'" in found and "'over the edge' is cut off" in found and "runs through legend" in found
