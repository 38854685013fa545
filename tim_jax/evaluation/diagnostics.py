"""What a trained network does by time and interval: errors, sizes and accuracy of dF/dt, as numbers and as pictures.

All is known at pairs of nodes: matrices (n, n) over the node of t and that of r, NaN where r > t. Nodes are noise
levels from 0 (data) to 1 (noise), in which transports can be compared.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from tim_jax.evaluation.curves import COLOURS, MARKERS, save
from tim_jax.system import files

NAMES = ("diagnostics.json", "diagnostics_error.png", "diagnostics_tangent.png", "diagnostics_derivative.png")
EXACT = "exact"  # in place of a half step: forward mode in the type of computation


def pairs(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (of t, of r) of all pairs of nodes with r ≤ t."""
    return np.tril_indices(nodes)


def matrix(nodes: int, values: np.ndarray) -> np.ndarray:
    """(nodes, nodes) of values in the order of `pairs`, NaN where r > t."""
    full = np.full((nodes, nodes), np.nan)
    full[pairs(nodes)] = values
    return full


def relative(difference: np.ndarray, size: np.ndarray, by: str) -> np.ndarray:
    """(n,) relative errors by "interval" (difference of the nodes) or "time" (node of t).

    difference, size: (n, n) mean squares. What falls together is summed before the ratio is taken, so that places where
    dF/dt is nearly 0 do not outweigh the others.
    """
    t, r = pairs(len(size))
    group = t - r if by == "interval" else t
    sums = [np.bincount(group, values[t, r], len(size)) for values in (difference, size)]
    return np.sqrt(sums[0] / np.maximum(sums[1], np.finfo(float).tiny))


def write(found: Mapping[str, Any], folder: epath.Path) -> None:
    """Writes diagnostics.json and the pictures.

    found: {"levels": (n,), "error", "tangent", "square": (n, n), "difference": {type: {half step or EXACT: (n, n)}},
    and whatever else is to be told}. error: mean square of F − F*; tangent: root mean square of dF/dt and square that
    of its square; difference: mean square of what dF/dt differs by.
    """
    levels = np.asarray(found["levels"])
    curves = {
        by: {
            dtype: {str(step): relative(matrix, found["square"], by) for step, matrix in steps.items()}
            for dtype, steps in found["difference"].items()
        }
        for by in ("interval", "time")
    }
    shown = {name: value for name, value in found.items() if name not in ("square", "difference")}
    text = json.dumps(plain(shown | {"derivative": curves}), indent=2, allow_nan=False)
    files.replace(folder / NAMES[0], (text + "\n").encode())
    about = f"step {found['step']}, {found['rows']} held-out rows in each cell"
    heat_map(found["error"], levels, "Row error: mean of (F − F*)²", about, folder / NAMES[1])
    heat_map(found["tangent"], levels, "Size of dF/dt: root mean square", about, folder / NAMES[2])
    derivative_curves(curves, levels, about, folder / NAMES[3])


def plain(value: Any) -> Any:
    """Arrays as lists, numbers that are not finite as null."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def heat_map(values: np.ndarray, levels: np.ndarray, title: str, about: str, path: epath.Path) -> None:
    """A cell for every pair of nodes, its number written into it, on a logarithmic scale of colours. PNG."""
    from matplotlib.colors import LogNorm  # slow to import
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    figure = Figure(figsize=(7.4, 6), layout="constrained")
    axes = figure.subplots()
    seen = values[np.isfinite(values) & (values > 0)]
    low, high = (seen.min(), seen.max()) if len(seen) else (0.1, 1.0)
    norm = LogNorm(low, max(high, 1.001 * low))
    image = axes.imshow(np.ma.masked_invalid(values.T), origin="lower", norm=norm, cmap="viridis")
    for t, r in zip(*pairs(len(levels)), strict=True):
        if np.isfinite(values[t, r]):
            dark = values[t, r] <= 0 or norm(values[t, r]) < 0.6
            text = f"{values[t, r]:.2g}"
            axes.text(t, r, text, ha="center", va="center", fontsize=7.5, color="white" if dark else "black")
    ticks = [f"{level:.3g}" for level in levels]
    axes.set_xticks(range(len(levels)), ticks)
    axes.set_yticks(range(len(levels)), ticks)
    axes.set_xlabel("noise level of t, where the jump starts (0 data, 1 noise)")
    axes.set_ylabel("noise level of r, where it ends")
    axes.set_title(f"{title}\n{about}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    bar = figure.colorbar(image, shrink=0.85, format=FuncFormatter(lambda value, _: f"{value:g}"))
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    save(figure, path)


def derivative_curves(curves: Mapping[str, Any], levels: Sequence[float], about: str, path: epath.Path) -> None:
    """Relative errors of dF/dt by interval and time, a colour per half step, dashed in the network's type. PNG."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    labels = {
        "interval": "interval: noise level of t minus that of r",
        "time": "noise level of t (0 data, 1 noise)",
    }
    panels = figure.subplots(1, len(labels), sharey=True)
    for axes, (by, label) in zip(panels, labels.items(), strict=True):
        for dtype, steps in curves[by].items():
            dashes = "-" if dtype == "float32" else "--"
            for i, (step, values) in enumerate(steps.items()):
                name = "forward mode" if step == EXACT else f"central difference, ε = {step}"
                colour = "#555555" if step == EXACT else COLOURS[i % len(COLOURS)]
                marker = "x" if step == EXACT else MARKERS[i % len(MARKERS)]
                style = dict(color=colour, marker=marker, lw=1.6, ms=5)
                axes.plot(levels, values, dashes, label=f"{name}, {dtype}", **style)
        axes.set_yscale("log")
        axes.set_xlabel(label)
        axes.set_title(f"by {by}", fontsize=10)
        axes.grid(color="#dddddd", lw=0.7, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("relative error of dF/dt")
    figure.suptitle(f"dF/dt against forward mode in float32, {about}", fontsize=11)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=9)
    save(figure, path)
