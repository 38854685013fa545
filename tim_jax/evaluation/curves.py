"""Curves on logarithmic axes, as PNG at any path that epath knows."""

import itertools

import numpy as np

from tim_jax.evaluation import figures

STYLES = ("--", ":", "-.")  # of floors


def curves(series, floors, path, x_label, y_label):
    """Draws curves with error bars on two logarithmic axes, as PNG.

    Args:
        series: {name: (x, y, spread)}, three sequences of equal length for each curve.
        floors: {label: {name: height}} of lines across, each label with a style of its own; heights that are equal are
            drawn once.
        path: where the picture is written.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
    """
    figure = figures.new(7, 4)
    axes = figure.subplots()
    for i, (name, (x, y, spread)) in enumerate(series.items()):
        style = {
            "color": figures.COLOURS[i % len(figures.COLOURS)],
            "marker": figures.MARKERS[i % len(figures.MARKERS)],
        }
        axes.errorbar(x, y, yerr=spread, label=name, lw=1.8, ms=6, mec="white", mew=0.8, capsize=3, zorder=3, **style)
    lines = []
    for dashes, (label, floor) in zip(itertools.cycle(STYLES), floors.items()):
        heights = list(floor.values())
        if heights and np.ptp(heights) <= 1e-9 * max(heights):
            floor = {"": heights[0]}
        for i, (name, height) in enumerate(floor.items()):
            colour = "#555555" if len(floor) == 1 else figures.COLOURS[i % len(figures.COLOURS)]
            lines.append(f"{label} ({name})" if name else label)
            axes.axhline(height, color=colour, ls=dashes, lw=1.2, label=lines[-1], zorder=2)
    figures.logarithmic(axes, {value for x, _, _ in series.values() for value in x})
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    handles, names = axes.get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda i: names[i] in lines)  # curves first
    figures.legend_below(figure, [handles[i] for i in order], [names[i] for i in order])
    figures.save(figure, path)
