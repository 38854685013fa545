"""Curves on logarithmic axes, as PNG at any path that epath knows."""

import io

import numpy as np

from tim_jax.system import files

# Okabe & Ito's colours, which remain distinct with every common colour blindness, without yellow, too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vPX"


def curves(series, floor, path, x_label, y_label, floor_label="floor"):
    """Draws curves with error bars on two logarithmic axes, as PNG.

    Args:
        series: {name: (x, y, spread)}, three sequences of equal length for each curve.
        floor: {name: height} of dashed lines; equal heights are drawn once.
        path: where the picture is written.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
        floor_label: what to call a dashed line in the legend.
    """
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for i, (name, (x, y, spread)) in enumerate(series.items()):
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        axes.errorbar(x, y, yerr=spread, label=name, lw=1.8, ms=6, mec="white", mew=0.8, capsize=3, zorder=3, **style)
    heights = list(floor.values())
    if heights and np.ptp(heights) <= 1e-9 * max(heights):
        floor = {"": heights[0]}
    for i, (name, height) in enumerate(floor.items()):
        colour = "#555555" if len(floor) == 1 else COLOURS[i % len(COLOURS)]
        label = f"{floor_label} ({name})" if name else floor_label
        axes.axhline(height, color=colour, ls="--", lw=1.2, label=label, zorder=2)
    logarithmic(axes, {value for x, _, _ in series.values() for value in x})
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    handles, names = axes.get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda i: names[i].startswith(floor_label))  # curves first
    axes.legend([handles[i] for i in order], [names[i] for i in order], frameon=False)
    save(figure, path)


def logarithmic(axes, ticks):
    """Gives axes powers of two along x, with a tick at each of `ticks`, and plain numbers along a logarithmic y."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", nonpositive="clip")
    axes.set_xticks(sorted(ticks))
    axes.xaxis.set_major_formatter(plain)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="#dddddd", lw=0.7, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure, path):
    """Writes a figure of matplotlib as PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    files.replace(path, buffer.getvalue())
