"""A sweep's table, plot and best cells: quality of samples by weights, sampler, plan, guidance, and steps.

A sweep is a dict that JSON can hold. "lines" are ways of sampling, each with the AXES, its "protocol", its any-step
"rows" and its "failures", {steps: why there is no row}. "metric" is what is compared: the first in METRICS that there
is. "by" is what its columns are, "steps" or "evaluations": those of the network per image that the rows' steps take, at
most where a sampler skips some. Where samples are steered, each operator is a task of its own: they are compared among
those of the same one, there is no best cell of all, and a table of the PSNR to what was to be restored.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from tim_jax.evaluation import anystep, figures, protocol, restored
from tim_jax.evaluation.metrics import METRICS
from tim_jax.evaluation.yardstick import HELD_OUT

# Words before a value.
AXES = {
    "operator": "",
    "steering": "",
    "weights": "",
    "sampler": "",
    "plan": "",
    "guidance": "guidance ",
    "guidance_interval": "in ",
}
BY = {"steps": "by steps", "evaluations": "by network evaluations per image"}
COLUMNS = 4  # panels side by side
OWN_PLAN, LEARNED_PLAN = "own plan", "learned plan"  # values of the axis
BEST = "best of a panel"  # in the legend


def make(lines: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> dict[str, Any]:
    """Makes a sweep.

    Args:
        lines: see above.
        about: what else is known: by, floor, floor_at_count (see `Yardstick`), duplicates, samples, seeds, step,
            reference; "inputs": {operator: PSNR of what it measures itself}.

    Returns:
        The sweep, with "best": {its "by": {number: cell}, "overall": cell}, see `best`; no cells for several operators.
    """
    rows = [row for line in lines for row in line["rows"]]
    metric = next(name for name in METRICS if not rows or name in rows[0])
    found = {"by": "steps", **about, "metric": metric, "lines": [dict(line) for line in lines]}
    counts = sorted({row[found["by"]] for row in rows})
    if len({line.get("operator") for line in lines}) > 1:
        return found | {"best": {found["by"]: {}, "overall": None}}
    each_best = {str(each): best(found, [each]) for each in counts}
    return found | {"best": {found["by"]: each_best, "overall": best(found, counts)}}


def best(sweep: Mapping[str, Any], counts: Sequence[int]) -> dict[str, Any] | None:
    """Finds the best cell among some columns, by the mean of the sweep's metric.

    Returns:
        {the AXES, "steps", "nfe", "value", "spread", "second": name of the next cell or None, "close": whether that is
        within the spread of seeds}; None if there is no cell.
    """
    metric = sweep["metric"]
    sign = -1 if METRICS[metric].higher_is_better else 1
    cells = [
        (sign * row[metric], row["nfe"], i, row)
        for i, line in enumerate(sweep["lines"])
        for row in line["rows"]
        if row[sweep["by"]] in counts
    ]
    if not cells:
        return None
    (value, nfe, i, row), *others = sorted(cells, key=lambda cell: cell[:3])
    line, spread = sweep["lines"][i], row[f"{metric}_spread"]
    found = {name: line.get(name) for name in AXES} | {"steps": row["steps"], "nfe": nfe, "value": sign * value}
    found |= {"spread": spread, "second": None, "close": False}
    others = [cell for cell in others if cell[0] != value]  # equal ones are the same samples: guidance did not act
    if others:
        second, _, j, other = others[0]
        title = name_of(sweep["lines"][j], varying(sweep))
        found["second"] = f"{title}, {_steps(other['steps'])}" if len(counts) > 1 else title
        found["close"] = second - value <= math.hypot(spread, other[f"{metric}_spread"])
    return found


def varying(sweep: Mapping[str, Any]) -> list[str]:
    """The names of the AXES along which there is more than one value, or the first if there is none."""
    values = {name: {str(line[name]) for line in sweep["lines"] if line.get(name) is not None} for name in AXES}
    return [name for name in AXES if len(values[name]) > 1] or ["weights"]


def name_of(line: Mapping[str, Any], axes: Sequence[str]) -> str:
    """What a line is called by its values along some axes: "slow, guidance 1.5, in [0.1, 0.8]"."""
    return ", ".join(f"{AXES[axis]}{text}" for axis in axes if (text := _text(line.get(axis))))


def to_markdown(sweep: Mapping[str, Any]) -> str:
    """Returns a sweep as markdown: a line per way of sampling, a column per step count, then the best and how."""
    metric, axes = sweep["metric"], varying(sweep)
    text = []
    for name in (metric, metric + HELD_OUT, restored.NAME):
        if any(name in row for line in sweep["lines"] for row in line["rows"]):
            text += [f"{_title(sweep, name)}, {BY[sweep['by']]}:", "", *_table(sweep, name, axes), ""]
    if sweep.get("inputs"):
        values = ", ".join(f"{value:.4g} dB of {operator}" for operator, value in sweep["inputs"].items())
        text += [f"PSNR of the degraded images themselves: {values}.", ""]
    if sweep["best"]["overall"]:
        text += [*_best(sweep), ""]
    for line in sweep["lines"]:
        text += [f"- {name_of(line, axes)}, {_steps(int(s))}: {why}" for s, why in line["failures"].items()]
    seeds, step = len(sweep["seeds"]), f", training step {sweep['step']}" if "step" in sweep else ""
    over = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    text += [
        f"{sweep['samples']} samples in each cell, {over}{step}. Bold: the best of a column. All other figures are in "
        f"sweep.json. {anystep.about_floors(sweep)}",
        "",
        f"{protocol.read(sweep['lines'][0]['protocol']).measured}. {_same(sweep, axes)}",
    ]
    return "\n".join(text) + "\n"


def plot(sweep: Mapping[str, Any], path: epath.Path) -> None:
    """Plots the sweep's metric as PNG: by guidance, a panel per step count, where that was swept; else by evaluations.

    Args:
        sweep: with at least one row.
        path: where the picture is written.
    """
    scales = sorted({line["guidance"] for line in sweep["lines"]})
    figures.save(_panels(sweep, scales) if len(scales) > 1 else _curves(sweep), path)


def _curves(sweep):
    metric, names = sweep["metric"], varying(sweep)
    figure = figures.new(7, 4)
    axes = figure.subplots()
    for i, line in enumerate(sweep["lines"]):
        x, y, spread = ([row[key] for row in line["rows"]] for key in ("nfe", metric, f"{metric}_spread"))
        axes.errorbar(x, y, yerr=spread, label=name_of(line, names), **_style(i))
    _add_floor(sweep, axes)
    counts = {row["nfe"] for line in sweep["lines"] for row in line["rows"]}
    figures.logarithmic(axes, {count for count in counts if isinstance(count, int)} or counts)  # means are no ticks
    axes.set_xlabel("network evaluations per image")
    axes.set_ylabel(f"{_title(sweep, metric)} to the training part")
    _legend(figure, axes)
    return figure


def _add_floor(sweep, axes):
    """That of as many samples, if there is one."""
    for key in ("floor_at_count", "floor"):
        height = sweep.get(key, {}).get(sweep["metric"], 0)
        if height > 0:
            label = anystep.PLOTTED[key].format(count=f"{sweep['samples']:,}")
            axes.axhline(height, color="#555555", ls=(0, (1, 2)), lw=1.2, label=label)
            break


def _panels(sweep, scales):
    metric = sweep["metric"]
    counts = sorted({row[sweep["by"]] for line in sweep["lines"] for row in line["rows"]})
    rows = math.ceil(len(counts) / COLUMNS)
    columns = math.ceil(len(counts) / rows)
    figure = figures.new(max(2.9 * columns + 0.8, 5), 2.7 * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    curves = _curves_by_guidance(sweep)
    for axes, count in zip(grid.flat, counts):
        for i, (name, points) in enumerate(curves.items()):
            x = [scale for scale in sorted(points) if count in points[scale]]
            y, spread = ([points[scale][count][key] for scale in x] for key in (metric, f"{metric}_spread"))
            axes.errorbar(x, y, yerr=spread, label=name, **_style(i))
        if cell := sweep["best"][sweep["by"]].get(str(count)):
            ring = dict(ls="", marker="o", ms=13, mfc="none", mec="#222222", mew=1.2, zorder=4)
            axes.plot([cell["guidance"]], [cell["value"]], label=BEST, **ring)
        _add_floor(sweep, axes)
        axes.set_title(_column(sweep, count), fontsize=10)
    for axes in list(grid.flat)[len(counts) :]:
        axes.set_visible(False)
    for axes in list(grid.flat)[: len(counts)]:
        figures.logarithmic_height(axes, scales)
        axes.xaxis.set_tick_params(labelbottom=True)
        axes.set_xlabel("guidance scale", fontsize=9)
    figure.supylabel(f"{_title(sweep, metric)} to the training part", fontsize=10)
    _legend(figure, grid.flat[0])
    return figure


def _legend(figure, axes):
    """Below the axes: the curves first, then what is not one of them."""
    found = sorted(
        zip(*axes.get_legend_handles_labels()), key=lambda each: each[1] == BEST or each[1].startswith("floor")
    )
    figures.legend_below(figure, *zip(*found))


def _curves_by_guidance(sweep):
    """{name: {scale: {column: row}}}; the scale 1, which has no interval, belongs to the curves of all intervals."""
    axes = [axis for axis in varying(sweep) if axis != "guidance"]
    guided = [line for line in sweep["lines"] if line["guidance_interval"]]
    curves: dict[str, dict] = {}
    for line in guided:
        same = [
            other
            for other in sweep["lines"]
            if all(other.get(axis) == line.get(axis) for axis in AXES if not axis.startswith("guidance"))
            and other["guidance_interval"] in (None, line["guidance_interval"])
        ]
        name = name_of(line, axes) or "samples"
        curves[name] = {each["guidance"]: {row[sweep["by"]]: row for row in each["rows"]} for each in same}
    return curves


def _style(i: int) -> dict[str, Any]:
    turn, place = divmod(i, len(figures.COLOURS))
    colour, marker = figures.COLOURS[place], figures.MARKERS[(place + turn) % len(figures.MARKERS)]
    dashes = ("-", "--", ":", "-.")[turn % 4]  # as many as the samplers need
    return dict(color=colour, marker=marker, ls=dashes, lw=1.8, ms=5, mec="white", mew=0.7, capsize=2.5, zorder=3)


def _table(sweep: Mapping[str, Any], name: str, axes: Sequence[str]) -> list[str]:
    """The lines of a markdown table of one figure."""
    rows = [{row[sweep["by"]]: row for row in line["rows"]} for line in sweep["lines"]]
    counts = sorted({count for each in rows for count in each})
    lines = [[*(axis.replace("guidance_", "") for axis in axes), *map(str, counts)]]
    lines += [[*[":---"] * len(axes), *["---:"] * len(counts)]]
    best = max if name == restored.NAME or METRICS[sweep["metric"]].higher_is_better else min
    tasks = [line.get("operator") for line in sweep["lines"]]
    for line, each in zip(sweep["lines"], rows, strict=True):
        alike = [of for task, of in zip(tasks, rows, strict=True) if task == line.get("operator")]
        bests = {count: best(of[count][name] for of in alike if count in of) for count in each}
        cells = []
        for count in counts:
            if count not in each:
                cells.append("failed" if sweep["by"] == "steps" and str(count) in line["failures"] else "")
                continue
            spread = f" ± {each[count][f'{name}_spread']:.1g}" if len(sweep["seeds"]) > 1 else ""
            cell = f"{each[count][name]:.3g}{spread}"
            cell = f"**{cell}**" if each[count][name] == bests[count] else cell
            skips = isinstance(nfe := each[count]["nfe"], float)  # as a mean
            cells.append(f"{cell} ({anystep.counted(nfe)} NFE)" if skips else cell)
        lines.append([*(_text(line.get(axis)) for axis in axes), *cells])
    for title, floor in anystep.floors(sweep).items():
        if name in floor:
            lines.append([title, *[""] * (len(axes) - 1), *[f"{floor[name]:.3g}"] * len(counts)])
    return ["| " + " | ".join(line) + " |" for line in lines]


def _best(sweep: Mapping[str, Any]) -> list[str]:
    """Lines with the best cell of each column and of all, and whether other seeds could change that."""
    axes = varying(sweep)

    def told(cell: Mapping[str, Any]) -> str:
        spread = f" ± {cell['spread']:.1g}" if len(sweep["seeds"]) > 1 else ""
        close = f", within the spread of {cell['second']}" if cell["close"] and len(sweep["seeds"]) > 1 else ""
        return f"{name_of(cell, axes)} ({cell['value']:.3g}{spread}, {_nfe(cell['nfe'])}{close})"

    overall = sweep["best"]["overall"]
    return [
        f"Best {_title(sweep, sweep['metric'])} to the training part:",
        "",
        *(f"- {_column(sweep, int(count))}: {told(cell)}" for count, cell in sweep["best"][sweep["by"]].items()),
        f"- **overall: {_steps(overall['steps'])}, {told(overall)}**",
    ]


def _same(sweep: Mapping[str, Any], axes: Sequence[str]) -> str:
    """How all cells were sampled, along the axes on which they are alike."""
    of = protocol.read(sweep["lines"][0]["protocol"])
    line = dict(next((line for line in sweep["lines"] if line["guidance_interval"]), sweep["lines"][0]))
    line["plan"] = None if line["plan"] == OWN_PLAN else line["plan"]
    alike = name_of(line, [axis for axis in AXES if axis not in axes])
    return f"All: {alike + ', ' if alike else ''}on the grid {of.grid}. NFE: {of.nfe}."


def _title(sweep: Mapping[str, Any], name: str) -> str:
    first = next(row for line in sweep["lines"] for row in line["rows"])
    table = {"rows": [first], "reference": sweep["reference"]}
    return anystep.long_title(table, name) if not name.endswith(HELD_OUT) else anystep.titles(table)[name]


def _nfe(nfe: int | float) -> str:
    return f"{anystep.counted(nfe)} {'mean ' * isinstance(nfe, float)}NFE"


def _column(sweep: Mapping[str, Any], count: int) -> str:
    return _steps(count) if sweep["by"] == "steps" else f"{count} evaluation{'s' * (count > 1)}"


def _steps(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, int | float) else f"[{value[0]:g}, {value[1]:g}]"
