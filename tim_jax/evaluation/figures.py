"""What the figures of the project share: colours, logarithmic axes, a legend that covers nothing, PNG files.

Names in a legend are the user's (of workdirs, of variants): there may be many, and long ones. So the legend has a place
of its own below the axes, and the figure grows by as much as it needs. Ticks are thinned until their labels fit.
"""

import io
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath

from tim_jax.system import files

# Okabe & Ito's colours, which remain distinct with every common colour blindness, without yellow, too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vPX"
DIGITS = ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9))
MAX_TICKS = 9  # along an axis
APART = 1 / 14  # of an axis' length, between ticks whose places are given
LINE = 80  # characters in a line of a legend or of a title


def logarithmic(axes: Any, ticks: Iterable[float]) -> None:
    """Makes both axes logarithmic, with plain numbers at the ticks. Call it when everything is drawn.

    Args:
        axes: of matplotlib.
        ticks: places along x, of which those too close to others get no tick; powers of two come first.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log", base=2)
    axes.set_yscale("log", nonpositive="clip")
    axes.xaxis.set_major_locator(FixedLocator(thinned(ticks)))
    axes.xaxis.set_major_formatter(FuncFormatter(plain))
    axes.xaxis.set_minor_locator(NullLocator())
    few_ticks(axes.yaxis, *axes.get_ylim())
    axes.grid(color="#dddddd", lw=0.7, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def logarithmic_height(axes: Any, places: Sequence[float]) -> None:
    """Makes the vertical axis logarithmic, and ticks of the other one equally far apart. Call it at the end.

    Args:
        axes: of matplotlib.
        places: along x, all that there are: where they are few they are the ticks.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    axes.set_yscale("log", nonpositive="clip")
    gaps = np.diff(sorted(places))
    few = len(places) <= 6 and (gaps >= (max(places) - min(places)) / 8).all()
    axes.xaxis.set_major_locator(FixedLocator(sorted(places)) if few else MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(plain))
    few_ticks(axes.yaxis, *axes.get_ylim())
    axes.grid(color="#dddddd", lw=0.7, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def thinned(ticks: Iterable[float]) -> list[float]:
    """Returns the ticks whose labels have room on a logarithmic axis, in ascending order, powers of two first."""
    given = sorted(set(ticks))
    gap = APART * math.log(given[-1] / given[0]) if given else 0.0
    chosen: list[float] = []
    for tick in sorted(given, key=lambda tick: (not math.log2(tick).is_integer(), tick)):
        if all(abs(math.log(tick / other)) >= gap for other in chosen):
            chosen.append(tick)
    return sorted(chosen)


def few_ticks(axis: Any, low: float, high: float) -> None:
    """Gives a logarithmic axis from `low` to `high` three to MAX_TICKS ticks, whether it spans 1% or fifty decades."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    for digits in DIGITS:
        ticks = np.asarray(LogLocator(subs=digits, numticks=1000).tick_values(low, high))
        ticks = ticks[(ticks >= low) & (ticks <= high)]
        if len(ticks) >= 3:
            break
    else:
        ticks = np.asarray(MaxNLocator(4).tick_values(low, high))
    axis.set_major_locator(FixedLocator(list(ticks[:: math.ceil(len(ticks) / MAX_TICKS)])))
    axis.set_major_formatter(FuncFormatter(plain))
    axis.set_minor_locator(NullLocator())


def plain(value: float, position: int | None = None) -> str:
    """Returns the label of a tick: a number without superfluous digits."""
    return f"{value:.6g}"


def wrapped(text: str) -> str:
    """Returns a text in lines that fit into a figure; names without blanks are broken too."""
    return textwrap.fill(text, LINE)


def legend_below(figure: Any, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Adds a legend below the axes in as many columns as fit, and makes the figure as much higher as the legend is.

    Args:
        figure: of matplotlib, with constrained layout.
        handles: what is drawn.
        names: of the handles.
    """
    names = [wrapped(name) for name in names]
    for columns in range(min(len(names), 6), 0, -1):
        style: dict[str, Any] = dict(frameon=False, fontsize=9, handlelength=2.5)
        legend = figure.legend(handles, names, loc="outside lower center", ncols=columns, **style)
        size = legend.get_window_extent(figure.canvas.get_renderer())
        if size.width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + size.height / figure.dpi)


def new(width: float, height: float) -> Any:
    """Returns an empty figure in inches whose axes make room for their labels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # which can measure texts
    return figure


def save(figure: Any, path: epath.Path) -> None:
    """Writes a figure of matplotlib as PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    files.replace(path, buffer.getvalue())
