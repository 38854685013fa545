"""The section of diagnostics.json: errors and sizes of dF/dt by (t, r) as tables of coloured cells, and curves."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tim_jax.evaluation.diagnostics import EXACT
from tim_jax.report.curves import short
from tim_jax.report.markup import Markup, captioned, component, digits, join, missing, tag
from tim_jax.report.reading import Folder, is_number

FILE = "diagnostics.json"
SHADES = 12  # of the cells, as assets/style.css has them
MOST_NODES = 17  # along a side of a table
MAPS = {"error": "Error: mean of (F − F*)²", "tangent": "Size of dF/dt: root mean square"}
BY = {"interval": "interval: level of t minus that of r", "time": "noise level of t (0 data, 1 noise)"}


def section(folder: Folder, command: str) -> Markup:
    """Returns the diagnostics of a run. command: that makes them."""
    found = folder.json(FILE)
    if found is None:
        return missing("Errors and derivatives by time and interval are not known yet. They are found by:", command)
    levels = found["levels"]
    rows = found.get("rows")
    about = f"Step {found['step']:,}" if is_number(found.get("step")) else "Of an unknown step"
    about += f", {rows:,} held-out images in each cell. " if is_number(rows) else ". "
    about += (
        "Noise levels go from 0 (data) to 1 (noise); a jump starts at t and ends at r. Stronger colours are larger."
    )
    maps = [heat_map(title, found[name], levels) for name, title in MAPS.items() if name in found]
    parts = [tag("p", about, class_="note"), tag("div", *maps, class_="maps")]
    curves = found.get("derivative") or {}
    charts = [derivative_chart(curves[by], levels, label, by) for by, label in BY.items() if by in curves]
    if charts:
        title = "Relative error of dF/dt by central differences, against forward mode in float32"
        parts += [tag("h3", title), tag("div", *charts, class_="charts")]
    return join(parts)


def shade(value: float, low: float, high: float) -> int:
    """Returns the colour of a value on a logarithmic scale, from 0 for `low` to SHADES - 1 for `high`."""
    if value <= low or high <= low:
        return 0
    return min(SHADES - 1, int(SHADES * math.log(value / low) / math.log(high / low)))


def heat_map(title: str, matrix: Sequence[Sequence[Any]], levels: Sequence[float]) -> Markup:
    """Returns a table with a cell for every pair of noise levels, r ≤ t, coloured by its value.

    Args:
        title: of the table.
        matrix: a list for each node of t with a value for each node of r, null where there is no cell.
        levels: of the nodes.
    """
    nodes = range(0, len(levels), math.ceil(len(levels) / MOST_NODES))
    seen = [value for row in matrix for value in row if is_number(value) and value > 0]
    low, high = (min(seen), max(seen)) if seen else (1.0, 1.0)
    rows = []
    for r in reversed(nodes):
        cells = [tag("th", f"{levels[r]:.3g}", scope="row")]
        for t in nodes:
            value = matrix[t][r]
            if not is_number(value):
                cells.append(tag("td"))
                continue
            tip = f"t {levels[t]:.3g}, r {levels[r]:.3g}: {value:.4g}"
            cells.append(tag("td", digits(value, 2), class_=f"shade q{shade(value, low, high)}", data_tip=tip))
        rows.append(tag("tr", *cells))
    rows.append(
        tag("tr", tag("th", "r / t", scope="row"), *(tag("th", f"{levels[t]:.3g}", scope="col") for t in nodes))
    )
    thinner = "" if len(nodes) == len(levels) else f" ({len(nodes)} of {len(levels)} levels)"
    return captioned(f"{title}{thinner}", tag("table", tag("tbody", *rows), class_="heat", aria_label=title))


def derivative_chart(curves: Mapping[str, Any], levels: Sequence[float], label: str, by: str) -> Markup:
    """Returns relative errors of dF/dt by interval or by time, a curve for each half step and type."""
    series = []
    for kind, steps in curves.items():
        for step, values in steps.items():
            name = "forward mode" if step == EXACT else f"ε = {float(step):g}"
            name += f", {kind}" if len(curves) > 1 else ""
            y = [short(value) if is_number(value) and value > 0 else None for value in values]
            series.append({"name": name, "x": levels, "y": y, "dash": kind != "float32"})
    spec = {"x": {"label": label}, "y": {"label": "relative error", "log": True}, "series": series, "points": True}
    names = ", ".join(str(each["name"]) for each in series)
    chart = component("chart", spec, aria_label=f"Relative error of dF/dt by {by}: {names}")
    return tag("figure", tag("figcaption", f"By {by}"), chart, class_="chart")
