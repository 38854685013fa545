"""The section of sweep.json: quality by weights, sampler, guidance, its interval, and steps, with the best cells."""

from collections.abc import Mapping, Sequence
from typing import Any

from tim_jax.evaluation.yardstick import HELD_OUT
from tim_jax.report import quality
from tim_jax.report.curves import short
from tim_jax.report.markup import Markup, component, digits, join, table, tag
from tim_jax.report.reading import Folder, is_number

FILE = "sweep.json"
STEERED = {"operator": "operator", "steering": "steering"}  # of a sweep whose samples are steered
AXES = {"weights": "weights", "sampler": "sampler", "guidance": "guidance", "guidance_interval": "interval"}
FIXED = (*STEERED, "weights", "sampler")  # along a curve by guidance


def section(folder: Folder) -> Markup:
    """Returns plot and tables of a sweep. Raises one of `reading.WRONG` for a file that is not as it was written."""
    found = folder.json(FILE)
    lines, metric = found["lines"], found["metric"]
    names = [name for name in (metric, metric + HELD_OUT) if any(name in row for of in lines for row in of["rows"])]
    parts = [plot(found, lines, names)]
    if best := best_cell(found):
        parts.append(tag("p", best))
    parts += [cells(found, lines, name) for name in names]
    failures = [
        tag("li", f"{name_of(of, lines)}, {steps} steps: {why}")
        for of in lines
        for steps, why in of["failures"].items()
    ]
    return join([*parts, tag("ul", *failures) if failures else None, tag("p", quality.protocol_line(lines[0]))])


def name_of(of: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns what a way of sampling is called, by what is not the same in all of them."""
    varying = [axis for axis in STEERED | AXES if len({str(each.get(axis)) for each in lines}) > 1] or ["weights"]
    said = {"guidance": "guidance ", "guidance_interval": "in "}
    return ", ".join(f"{said.get(axis, '')}{told(of[axis])}" for axis in varying if of.get(axis) is not None)


def told(value: Any) -> str:
    """Returns a value along an axis."""
    if isinstance(value, list):
        return f"[{', '.join(f'{end:g}' for end in value)}]"
    return f"{value:g}" if is_number(value) else "" if value is None else str(value)


def plot(found: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Markup:
    """Returns a chart of the sweep's metric by network evaluations, and by guidance where that was swept."""
    panels = []
    for name in names:
        label = quality.title(found, name)
        series = [
            {"name": name_of(of, lines), "colour": i, **points(of["rows"], "nfe", name)} for i, of in enumerate(lines)
        ]
        floors = [
            {"name": title, "y": short(floor[name])}
            for title, floor in quality.floors(found).items()
            if is_number(floor.get(name))
        ]
        axes = {"x": {"label": "network evaluations per image", "log": 2}, "y": {"label": label}}
        panels.append({"name": f"{label} by evaluations", "series": series, "lines": floors, **axes})
        if len({of["guidance"] for of in lines}) > 1:
            axes = {"x": {"label": "guidance"}, "y": {"label": label}}
            panels.append({"name": f"{label} by guidance", "series": by_guidance(lines, name), "lines": floors, **axes})
    chart = component("chart", {"panels": panels, "y": {"log": True}, "points": True}, class_="wide",
                      aria_label="Figures of the sweep; the table below has the same values")  # fmt: skip
    return tag("figure", chart, class_="chart")


def points(rows: Sequence[Mapping[str, Any]], along: str, name: str) -> dict[str, Any]:
    """Returns x, y and spread of a curve of rows in ascending x."""
    rows = sorted((row for row in rows if is_number(row.get(name))), key=lambda row: row[along])
    return {
        "x": [row[along] for row in rows],
        "y": [short(row[name]) for row in rows],
        "spread": [short(row[f"{name}_spread"]) for row in rows],
    }


def by_guidance(lines: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """Returns a curve along guidance for each way of sampling but for that, and each number of steps.

    Without guidance there is no interval: that point belongs to the curves of all intervals.
    """
    curves: dict[str, list[dict[str, Any]]] = {}
    for of in lines:
        same = [each for each in lines if all(each.get(axis) == of.get(axis) for axis in FIXED)]
        intervals = {str(each.get("guidance_interval")): each for each in same if each.get("guidance_interval")}
        for each in [of] if of.get("guidance_interval") or not intervals else intervals.values():
            title = name_of({**each, "guidance": None}, lines)
            for row in of["rows"]:
                many = f"{row['steps']} step{'s' * (row['steps'] > 1)}"
                curves.setdefault(f"{title}, {many}" if title else many, []).append(row | {"guidance": of["guidance"]})
    return [
        {"name": title, "colour": i, **points(rows, "guidance", name)} for i, (title, rows) in enumerate(curves.items())
    ]


def best_cell(found: Mapping[str, Any]) -> Markup | None:
    """Returns which cell of all is best, and whether other seeds could change that."""
    of = (found.get("best") or {}).get("overall")
    if not of:
        return None
    axes = {axis: told(of[axis]) for axis in AXES if of.get(axis) is not None}
    where = ", ".join(f"{AXES[axis]} {value}" for axis, value in axes.items())
    second = f"; next is {of['second']}" if of.get("second") else ""
    close = ", which is within the spread of seeds" if of.get("close") else ""
    figure = tag("strong", f"{where}, {of['steps']} steps")
    return join(["Best of all: ", figure, f", {digits(of['value'])} ± {of['spread']:.1g}{second}{close}."])


def cells(found: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], name: str) -> Markup:
    """Returns a table: a line for each way of sampling, a column for each number of steps, the best of it marked.

    Each operator that samples are steered by is a task of its own, with a best.
    """
    steps = sorted({row["steps"] for of in lines for row in of["rows"]})
    axes = {axis: title for axis, title in STEERED.items() if any(of.get(axis) for of in lines)} | AXES
    shown = []
    for of in lines:
        alike = [row for each in lines if each.get("operator") == of.get("operator") for row in each["rows"]]
        marks = {n: quality.best([row for row in alike if row["steps"] == n], name) for n in steps}
        rows = {row["steps"]: row for row in of["rows"]}
        line: list[Any] = [told(of.get(axis)) for axis in axes]
        for n in steps:
            value = rows.get(n, {}).get(name)
            if not is_number(value):
                line.append("failed" if str(n) in of["failures"] else "")
                continue
            text = join([digits(value), tag("span", f" ± {rows[n][f'{name}_spread']:.1g}", class_="spread")])
            won = value == marks[n]
            line.append(tag("td", tag("strong", text) if won else text, class_=f"number{' best' * won}"))
        shown.append(line)
    caption = f"{quality.title(found, name)} by steps; the best of each column is bold"
    return table([*axes.values(), *map(str, steps)], shown, caption, texts=len(axes), class_="quality")
