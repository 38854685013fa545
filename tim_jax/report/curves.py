"""Curves of metrics.jsonl: every metric in a panel with those that it is compared with, thinned for the page."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tim_jax.report import reading
from tim_jax.report.markup import Markup, component, digits, join, missing, more, table, tag
from tim_jax.report.reading import Folder

FILE = "metrics.jsonl"
POINTS = 1200  # of a curve on a page, at most
SHADES = 5  # of curves that are in order, as assets/style.css has them
NOT_METRICS = ("step", "time")


class Panel(NamedTuple):
    """Metrics that share axes.

    Attributes:
        title: above the panel.
        unit: what the vertical axis shows.
        names: {metric: what it is called}; a name that ends with / stands for all that begin with it.
        first: whether the panel is seen at once, or with the others.
    """

    title: str
    unit: str
    names: Mapping[str, str]
    first: bool = True


PANELS = (
    Panel("Loss", "with all weights", {"loss": "loss"}),
    Panel("Unweighted errors", "mean of (F − F*)²", {"error_equal": "r = t", "error_moving": "r < t"}),
    Panel("Learning rate", "", {"learning_rate": "learning rate"}),
    Panel("Norm of the gradient", "before clipping", {"grad_norm": "gradient"}),
    Panel("Errors by noise level", "mean of (F − F*)²", {"error_by_level/": ""}),
    Panel("Errors by interval t − r", "mean of (F − F*)²", {"error_by_interval/": ""}),
    Panel("Size of dF/dt", "root mean square", {"tangent_rms": "dF/dt"}, False),
    Panel("Norm of the update", "", {"update_norm": "update"}, False),
    Panel("Images per second", "", {"images_per_second": "images"}, False),
    Panel("Waiting for data", "share of the time", {"data_wait": "waiting"}, False),
    Panel("Model FLOPs", "10¹² operations per second", {"model_tflops_per_second": "model"}, False),
    Panel("Model FLOPs utilisation", "share of the peak", {"mfu": "utilisation"}, False),
    Panel("Updates left out", "so far", {"nonfinite": "not finite"}, False),
    Panel("Memory", "GiB", {"memory/": ""}, False),
    Panel("Where the time went", "seconds since the first start", {"time/": ""}, False),
)
GOODPUT = Panel("Goodput", "share of the time since the first start", {"goodput": "goodput"})

Series = tuple[list[int], list[float | None]]  # steps, and values, None where one was not finite


def read(folder: Folder, below: str = "") -> dict[str, Series]:
    """Returns {metric: steps and values} of a run; steps that were made again count as they were made last.

    Args:
        folder: of the run, or one that holds it.
        below: the place of the run in that folder, "" or ending with a /.
    """
    found: dict[str, dict[int, float | None]] = {}
    for line in folder.lines(f"{below}{FILE}"):
        step = line.get("step")
        if not reading.is_number(step) or not math.isfinite(step):
            continue
        for name, value in line.items():
            if name in NOT_METRICS or not (value is None or reading.is_number(value)):
                continue
            at = found.setdefault(str(name), {})
            at[int(step)] = None if value is None or not math.isfinite(value) else float(value)
    return {name: (sorted(values), [values[step] for step in sorted(values)]) for name, values in found.items()}


def thinned(series: Series, most: int = POINTS) -> Series:
    """Returns at most so many points of a curve, with the first, the last, the least and the greatest of every part.

    All parts have as many points, so that nothing of a curve as it is drawn is lost: no peak, and no gap either.

    Args:
        series: steps in ascending order, and values.
        most: at least 8.
    """
    steps, values = series
    if len(steps) <= most:
        return series
    parts = np.array_split(np.arange(len(steps)), most // 5)
    numbers = np.array([math.nan if value is None else value for value in values])
    kept: set[int] = set()
    for part in parts:
        kept |= {int(part[0]), int(part[-1])}
        seen = numbers[part]
        if np.isnan(seen).any():
            kept.add(int(part[np.argmax(np.isnan(seen))]))
        if not np.isnan(seen).all():
            kept |= {int(part[np.nanargmin(seen)]), int(part[np.nanargmax(seen)])}
    chosen = sorted(kept)
    return [steps[i] for i in chosen], [values[i] for i in chosen]


def line(name: str, series: Series, **more: Any) -> dict[str, Any]:
    """Returns a curve of a chart; more: see assets/charts.js."""
    steps, values = thinned(series)
    return {"name": name, "x": steps, "y": [None if value is None else short(value) for value in values], **more}


def short(value: float) -> float:
    """Returns a number with the digits of single precision, in which metrics are computed."""
    return float(f"{value:.7g}")


def matched(panel: Panel, names: Iterable[str]) -> dict[str, str]:
    """Returns {metric: what it is called} of the metrics of a panel that are there."""
    found = {}
    for pattern, title in panel.names.items():
        for name in names:
            if name == pattern:
                found[name] = title
            elif pattern.endswith("/") and name.startswith(pattern):
                found[name] = title + name.removeprefix(pattern).replace("-", "–")
    return dict(sorted(found.items(), key=lambda item: _start(item[1]))) if len(panel.names) == 1 else found


def _start(name: str) -> tuple[float, str]:
    """The number that a name such as 0.2–0.4 begins with, by which ranges are in order, and whether it is a range."""
    match = re.match(r"[\d.]+", name)
    return float(match[0]) if match else math.inf, name


def arranged(names: Iterable[str]) -> list[Panel]:
    """Returns the panels of some metrics; those that no panel is for have one each, and evaluations one a figure."""
    names = list(names)
    panels = [panel for panel in PANELS if matched(panel, names)]
    seen = {name for panel in (*panels, GOODPUT) for name in matched(panel, names)}
    figures: dict[str, dict[str, str]] = {}
    for name in names:
        if name in seen:
            continue
        parts = name.split("/")
        if parts[0] == "evaluation" and len(parts) == 4:  # EMA, steps, figure
            figures.setdefault(f"{parts[3]} while training", {})[name] = f"{parts[1]}, {parts[2]} steps"
        else:
            figures.setdefault(name, {})[name] = name
    own = [Panel(title, "", found, len(found) > 1 or "training" in title) for title, found in figures.items()]
    return [panel for panel in panels if panel.first] + own + [panel for panel in panels if not panel.first]


def chart(panel: Panel, found: Mapping[str, Series]) -> Markup:
    """Returns the chart of a panel."""
    lines = [line(title, found[name]) for name, title in matched(panel, found).items()]
    ranges = [each for each in lines if "–" in each["name"]]
    for i, each in enumerate(ranges):  # in order, so their colours are shades
        each["shade"] = round(i * (SHADES - 1) / max(len(ranges) - 1, 1))
    for each in lines if ranges else ():
        each["name"] = {"0": "0 (r = t)"}.get(each["name"], each["name"])
    spec = {"x": {"label": "step"}, "y": {"label": panel.unit}, "series": lines, "shared": True}
    label = f"{panel.title} by step: {', '.join(each['name'] for each in lines)}"
    unit = tag("span", panel.unit, class_="unit") if panel.unit else None
    caption = tag("figcaption", panel.title, " " if unit else None, unit)
    return tag("figure", caption, component("chart", spec, aria_label=label), class_="chart")


def section(folder: Folder, command: str) -> Markup:
    """Returns the curves of a run. command: that trains it."""
    found = read(folder)
    if not found:
        return missing("Nothing has been written to metrics.jsonl yet. Training writes it:", command)
    panels = arranged(found)
    first = [chart(panel, found) for panel in panels if panel.first]
    others = [chart(panel, found) for panel in panels if not panel.first]
    hint = "Point at a curve, or focus it and use the arrow keys, to read its values."
    return join(
        [
            component("tools", {}, tag("p", hint, class_="note"), class_="panel controls"),
            tag("div", *first, class_="charts"),
            more(f"{len(others)} more curves", tag("div", *others, class_="charts")) if others else None,
            more("First, least, greatest and last value of every metric", at_a_glance(found)),
        ]
    )


def at_a_glance(found: Mapping[str, Series]) -> Markup:
    """Returns a table of all metrics."""
    rows = []
    for name, (_, values) in sorted(found.items()):
        seen = [value for value in values if value is not None]
        ends = [seen[0], min(seen), max(seen), seen[-1]] if seen else []
        rows.append([name, len(values), *(digits(value, 4) for value in ends), *[""] * (4 - len(ends))])
    return table(["metric", "values", "first", "least", "greatest", "last"], rows, "All metrics of this run")


def last(found: Mapping[str, Series], name: str) -> float | None:
    """Returns the last value of a metric, None if there is none."""
    values: Sequence[float | None] = found.get(name, ([], []))[1]
    return next((value for value in reversed(values) if value is not None), None)
