"""The any-step table of a run, as any_step.json holds it: figures by number of steps, with a plot."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tim_jax.evaluation import anystep
from tim_jax.evaluation.metrics import METRICS, TITLES
from tim_jax.evaluation.yardstick import HELD_OUT
from tim_jax.report.curves import short
from tim_jax.report.markup import Markup, component, digits, facts, join, missing, more, table, tag
from tim_jax.report.reading import Folder, is_number

FILE = "any_step.json"
# What the section shows in places of its own; the others come as they are.
SHOWN = ("rows", "floor", "floor_at_count", "samples", "seeds", "monotone", "step", "labels", "reference")


def section(folder: Folder, command: str) -> Markup:
    """Returns plot and table. command: that makes them."""
    found = folder.json(FILE)
    if found is None:
        return missing("There is no any-step table of this run yet. It is made by:", command)
    rows, names = found["rows"], figures(found["rows"])
    parts = [plot(found, names)]
    held_out = [name for name in names if name.endswith(HELD_OUT)]
    own = [name for name in names if name not in held_out]
    for which, part in ((own, "the training part"), (held_out, "the held-out part")):
        parts += [figures_table(found, rows, which, part)] if which else []
    said = [tag("p", text, class_="note") for text in (verdict(found), protocol_line(found)) if text]
    return join([*parts, *said, protocol(found)])


def figures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the names of the figures of a table, those against the training part first. Raises ValueError."""
    found = [key.removesuffix("_seeds") for key in rows[0] if key.endswith("_seeds")]
    if not found:
        raise ValueError(f"{FILE} holds no figures")
    own = [name for name in METRICS if name in found]
    held_out = [f"{name}{HELD_OUT}" for name in METRICS if f"{name}{HELD_OUT}" in found]
    return [*own, *held_out, *(name for name in found if name not in {*own, *held_out})]


def title(found: Mapping[str, Any], name: str) -> str:
    """Returns what a figure of a table is called."""
    features = str((found.get("reference") or {}).get("features", "pixels")).split()[0]
    base = name.removesuffix(HELD_OUT)
    known = TITLES.get((features, base), METRICS[base].title if base in METRICS else base.replace("_", " "))
    return f"{known}, held out" if name != base else known


def best(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Returns the best mean of a figure over all rows, None where it is not known which end is good."""
    metric = METRICS.get(name.removesuffix(HELD_OUT))
    values = [row[name] for row in rows if is_number(row.get(name))]
    if metric is None or len(values) < 2:
        return None
    return max(values) if metric.higher_is_better else min(values)


def plot(found: Mapping[str, Any], names: Sequence[str]) -> Markup:
    """Returns a chart of every figure by network evaluations, of which one is seen at a time."""
    panels = []
    for name in names:
        rows = [row for row in found["rows"] if is_number(row.get(name))]
        of = {
            "name": title(found, name),
            "x": [row["nfe"] for row in rows],
            "y": [short(row[name]) for row in rows],
            "spread": [short(row.get(f"{name}_spread", 0.0)) for row in rows],
        }
        lines = [
            {"name": title, "y": short(floor[name])}
            for title, floor in floors(found).items()
            if is_number(floor.get(name))
        ]
        panels.append({"name": of["name"], "series": [of], "lines": lines, "y": {"label": of["name"]}})
    spec = {
        "x": {"label": "network evaluations per image", "log": 2},
        "y": {"log": True},
        "panels": panels,
        "points": True,
    }
    label = "Figures by network evaluations, with their spread over seeds; the table below has the same values"
    return tag("figure", component("chart", spec, aria_label=label, class_="wide"), class_="chart")


def figures_table(
    found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], names: Sequence[str], part: str
) -> Markup:
    """Returns a table: a line for each number of steps and the floor, the best mean of each column marked.

    Args:
        found: the any-step table.
        rows: of it.
        names: the figures that are shown.
        part: what they compare samples with.
    """
    marks = {name: best(rows, name) for name in names}
    seeds = len(found.get("seeds") or [None])

    def cell(row: Mapping[str, Any], name: str) -> Markup:
        value = row.get(name)
        if not is_number(value):
            return tag("td", "", class_="number")
        spread = row.get(f"{name}_spread")
        shown = join([digits(value), tag("span", f" ± {spread:.1g}", class_="spread") if seeds > 1 else None])
        each = ", ".join(f"{one:.5g}" for one in row.get(f"{name}_seeds", []))
        is_best = value == marks[name]
        return tag(
            "td",
            tag("strong", shown) if is_best else shown,
            class_="number best" if is_best else "number",
            data_tip=f"{title(found, name)}, {row['steps']} steps. By seed: {each}",
        )

    lines: list[list[Any]] = []
    for row in rows:
        lines.append([row["steps"], f"{row['nfe']:g}", *(cell(row, name) for name in names)])
        lines[-1].append(digits(1000 * row["seconds_per_image"]) if "seconds_per_image" in row else "")
    for name, floor in floors(found).items():
        lines.append([tag("th", name, scope="row", class_="floor"), "", *(of_floor(floor, each) for each in names), ""])
    header = ["steps", tag("abbr", "NFE", title="network evaluations per image")]
    header += [title(found, name).removesuffix(", held out") for name in names] + ["ms per image"]
    over = f"mean ± standard deviation over {seeds} seeds of the noise" if seeds > 1 else "one seed"
    return table(header, lines, f"Against {part}: {over}. The best mean of each column is bold.", class_="quality")


def floors(found: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Returns {title: {name: figure}} of the figures of real images that a table has."""
    given = anystep.floors({"floor": {}} | {key: value for key, value in found.items() if value is not None})
    return {title: floor for title, floor in given.items() if floor}


def of_floor(floor: Mapping[str, Any], name: str) -> Any:
    """Returns a figure of real images, with its spread where it has one."""
    value, spread = floor.get(name), floor.get(f"{name}_spread")
    if not is_number(value):
        return ""
    return join([digits(value), tag("span", f" ± {spread:.1g}", class_="spread") if is_number(spread) else None])


def verdict(found: Mapping[str, Any]) -> str:
    """Returns what the table says of itself, and what the floors are."""
    said = [(found.get("monotone") or {}).get("verdict", ""), anystep.FLOOR if found.get("floor") else ""]
    if found.get("floor_at_count"):
        said.append(f"{anystep.FLOOR_AT.format(count=found['samples'])}.")
    return " ".join(filter(None, said))


def protocol_line(found: Mapping[str, Any]) -> str:
    """Returns the sentence in which a table, or a line of a sweep, says how it was measured; "" if it does not."""
    protocol = found.get("protocol")
    return str(protocol.get("line", "")) if isinstance(protocol, Mapping) else ""


def protocol(found: Mapping[str, Any]) -> Markup:
    """Returns what was measured and how: what is known here by name, and whatever else the file says."""
    reference = found.get("reference") or {}
    own: dict[str, Any] = {}
    if "step" in found:
        own["training step"] = f"{found['step']:,}"
    if "samples" in found:
        own["samples per row and seed"] = f"{found['samples']:,}"
    if "seeds" in found:
        own["seeds"] = ", ".join(map(str, found["seeds"]))
    own |= {"labels": told(found["labels"])} if "labels" in found else {}
    own |= {f"reference: {name}": told(value) for name, value in reference.items()}
    own |= {name.replace("_", " "): told(value) for name, value in found.items() if name not in SHOWN}
    return more("How this was measured", facts(own, "protocol"))


def told(value: Any) -> Any:
    """Returns any value of a file as it can be read: names with values, lists with commas, numbers shortly."""
    if isinstance(value, Mapping):
        return facts({str(name): told(each) for name, each in value.items()}, "protocol inner")
    if isinstance(value, list):
        flat = all(not isinstance(each, Mapping | list) for each in value)
        return ", ".join(str(told(each)) for each in value) if flat else json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)
