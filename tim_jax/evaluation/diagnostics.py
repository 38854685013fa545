"""Diagnostics of a trained network by time and interval: errors, sizes and accuracy of dF/dt, in numbers and pictures.

Everything is measured at pairs of nodes and stored in matrices (n, n) over the node of t and that of r, NaN where
r > t. Nodes are noise levels from 0 (data) to 1 (noise), in which transports can be compared.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from tim_jax.evaluation import figures
from tim_jax.system import files

NAMES = ("diagnostics.json", "diagnostics_error.png", "diagnostics_tangent.png", "diagnostics_derivative.png")
CELLS_WIDTH = 500  # of a heat map, in widths of a digit of one point
SMALLEST_TEXT = 4.5  # points; with smaller ones the cells of a heat map have no numbers
MAX_LINES = 17  # of a table in text
MAX_LABELS = 10  # along a side of a heat map
EXACT = "exact"  # stands in the place of a half step for forward mode in the type of computation


def pairs(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices (of t, of r) of all pairs of nodes with r ≤ t."""
    return np.tril_indices(nodes)


def matrix(nodes: int, values: np.ndarray) -> np.ndarray:
    """Returns the matrix (nodes, nodes) of values in the order of `pairs`, NaN where r > t."""
    full = np.full((nodes, nodes), np.nan)
    full[pairs(nodes)] = values
    return full


def relative(difference: np.ndarray, size: np.ndarray, by: str) -> np.ndarray:
    """Returns relative errors by interval or by time.

    Mean squares of one group are summed before the ratio is taken, so that places where dF/dt is nearly 0 do not
    outweigh the others.

    Args:
        difference: (n, n) mean squares of what dF/dt differs by.
        size: (n, n) mean squares of dF/dt.
        by: "interval" groups pairs by the difference of their nodes, "time" by the node of t.

    Returns:
        (n,) the root of the ratio for each group.
    """
    sums = [by_group(values, by, np.sum) for values in (difference, size)]
    return np.sqrt(sums[0] / np.maximum(sums[1], np.finfo(float).tiny))


def by_group(values: np.ndarray, by: str, reduce: Callable[[np.ndarray], np.floating]) -> np.ndarray:
    """Returns (n,) what `reduce` makes of the pairs of one group in a matrix (n, n); see `relative` for `by`."""
    t, r = pairs(len(values))
    group = t - r if by == "interval" else t
    return np.array([reduce(values[t, r][group == k]) for k in range(len(values))])


def derivative(found: Mapping[str, Any]) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Returns {"interval" or "time": {type: {half step or EXACT: (n,) relative errors of dF/dt}}}; see `write`."""
    return {
        by: {
            dtype: {str(step): relative(matrix, found["square"], by) for step, matrix in steps.items()}
            for dtype, steps in found["difference"].items()
        }
        for by in ("interval", "time")
    }


def as_text(found: Mapping[str, Any]) -> str:
    """Returns the figures as two tables for a terminal, by time and by interval; at most MAX_LINES lines each.

    Args:
        found: what `write` takes.
    """
    levels, curves, text = np.asarray(found["levels"]), derivative(found), []
    shown = range(0, len(levels), math.ceil(len(levels) / MAX_LINES))
    firsts = {
        "time": ("noise level of t (0 data, 1 noise)", "t"),
        "interval": ("interval, noise level of t minus that of r (0: r = t)", "t - r"),
    }
    for by, (title, first) in firsts.items():
        columns = {
            first: levels,
            "(F - F*)^2": by_group(found["error"], by, np.mean),
            "|dF/dt|": np.sqrt(by_group(found["square"], by, np.mean)),
        }
        for dtype, steps in curves[by].items():
            names = {step: "forward" if step == EXACT else f"eps {float(step):g}" for step in steps}
            many = len(curves[by]) > 1
            columns |= {f"{names[step]} {dtype}" if many else names[step]: each for step, each in steps.items()}
        lines = [list(columns), *([f"{values[i]:.3g}" for values in columns.values()] for i in shown)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        text += [f"By {title}:", *table, ""]
    text += [
        "(F - F*)^2: mean squared error against the transition target. |dF/dt|: its root mean square.",
        "Then relative errors of dF/dt by central differences of half step eps, against forward mode in float32.",
    ]
    return "\n".join(text)


def write(found: Mapping[str, Any], folder: epath.Path) -> None:
    """Writes diagnostics.json and the pictures.

    Args:
        found: "levels" (n,) are the nodes; "error" (n, n) is the mean square of F − F*; "tangent" (n, n) and "square"
            (n, n) are the root mean square and the mean square of dF/dt; "difference" is {type: {half step or EXACT:
            (n, n)}}, mean squares of what dF/dt differs by; "step" and "rows" are the training step and the images in
            each cell. Anything else goes into the JSON as it is.
        folder: where the files are written.
    """
    levels = np.asarray(found["levels"])
    curves = derivative(found)
    shown = {name: value for name, value in found.items() if name not in ("square", "difference")}
    text = json.dumps(plain(shown | {"derivative": curves}), indent=2, allow_nan=False)
    files.replace(folder / NAMES[0], (text + "\n").encode())
    about = f"step {found['step']}, {found['rows']} held-out images in each cell"
    heat_map(found["error"], levels, "Error: mean of (F − F*)²", about, folder / NAMES[1])
    heat_map(found["tangent"], levels, "Size of dF/dt: root mean square", about, folder / NAMES[2])
    derivative_curves(curves, levels, about, folder / NAMES[3])


def plain(value: Any) -> Any:
    """Returns a value as JSON can hold it: arrays as lists, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def heat_map(values: np.ndarray, levels: np.ndarray, title: str, about: str, path: epath.Path) -> None:
    """Draws a cell for every pair of nodes with its number in it, on a logarithmic scale of colours, as PNG.

    Args:
        values: (n, n), NaN where there is no cell.
        levels: (n,) noise levels of the nodes.
        title: first line above the picture.
        about: second line.
        path: where the picture is written.
    """
    from matplotlib.colors import LogNorm  # slow to import

    figure = figures.new(7.4, 6)
    axes = figure.subplots()
    seen = values[np.isfinite(values) & (values > 0)]
    low, high = (seen.min(), seen.max()) if len(seen) else (0.1, 1.0)
    high = max(high, 1.001 * low)
    norm = LogNorm(low, high)
    image = axes.imshow(np.ma.masked_invalid(values.T), origin="lower", norm=norm, cmap="viridis")
    cells = [(t, r) for t, r in zip(*pairs(len(levels)), strict=True) if np.isfinite(values[t, r])]
    texts = [f"{values[cell]:.2g}" for cell in cells]
    size = min(7.5, CELLS_WIDTH / len(levels) / max(3, *map(len, texts)))
    for (t, r), text in zip(cells, texts, strict=True):
        if size < SMALLEST_TEXT:
            break
        dark = values[t, r] <= 0 or norm(values[t, r]) < 0.6
        axes.text(t, r, text, ha="center", va="center", fontsize=size, color="white" if dark else "black")
    nodes = range(0, len(levels), math.ceil(len(levels) / MAX_LABELS))
    axes.set_xticks(nodes, [f"{levels[node]:.3g}" for node in nodes])
    axes.set_yticks(nodes, [f"{levels[node]:.3g}" for node in nodes])
    axes.set_xlabel("noise level of t, where the jump starts (0 data, 1 noise)")
    axes.set_ylabel("noise level of r, where it ends")
    axes.set_title(f"{title}\n{about}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    bar = figure.colorbar(image, shrink=0.85)
    figures.few_ticks(bar.ax.yaxis, low, high)
    figures.save(figure, path)


def derivative_curves(curves: Mapping[str, Any], levels: np.ndarray, about: str, path: epath.Path) -> None:
    """Draws relative errors of dF/dt by interval and by time, as PNG.

    Args:
        curves: {"interval" or "time": {type: {half step or EXACT: (n,)}}}. A half step has a colour, and a type other
            than float32 is dashed.
        levels: (n,) noise levels of the nodes.
        about: what was measured, for the title.
        path: where the picture is written.
    """
    figure = figures.new(11, 4.4)
    labels = {
        "interval": "interval: noise level of t minus that of r",
        "time": "noise level of t (0 data, 1 noise)",
    }
    panels = figure.subplots(1, len(labels), sharey=True)
    for axes, (by, label) in zip(panels, labels.items(), strict=True):
        for dtype, steps in curves[by].items():
            dashes = "-" if dtype == "float32" else "--"
            for i, (step, values) in enumerate(steps.items()):
                name = "forward mode" if step == EXACT else f"central difference, ε = {float(step):g}"
                colour = "#555555" if step == EXACT else figures.COLOURS[i % len(figures.COLOURS)]
                marker = "x" if step == EXACT else figures.MARKERS[i % len(figures.MARKERS)]
                style = dict(color=colour, marker=marker, lw=1.6, ms=5)
                axes.plot(levels, values, dashes, label=f"{name}, {dtype}", **style)
        axes.set_yscale("log")
        axes.set_xlabel(label)
        axes.set_title(f"by {by}", fontsize=10)
        axes.grid(color="#dddddd", lw=0.7, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    figures.few_ticks(panels[0].yaxis, *panels[0].get_ylim())  # which the panels share
    panels[0].set_ylabel("relative error of dF/dt")
    figure.suptitle(f"dF/dt against forward mode in float32, {about}", fontsize=11)
    figures.legend_below(figure, *panels[0].get_legend_handles_labels())
    figures.save(figure, path)
