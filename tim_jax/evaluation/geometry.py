"""Pictures of the paths of a network from noise to data: how far from straight they are, and x̂ along them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from tim_jax.evaluation import figures, pictures

NAMES = ("diagnostics_paths.png", "diagnostics_data.png")
LEVEL = "noise level (0 data, 1 noise)"


def as_text(found: Mapping[str, Any]) -> str:
    """Returns the figures in a line; found: what `runs.geometry.follow` returns first."""
    return (
        f"Paths of F at r = t: straightness {found['straightness']:.3g} ± {found['straightness_spread']:.2g} between "
        f"paths (0: straight), largest deviation from the chord {np.max(found['deviation']):.3g} (RMS of a number)."
    )


def write(
    found: Mapping[str, Any], images: Mapping[str, np.ndarray] | None, shown: Any, folder: epath.Path
) -> list[str]:
    """Draws what was found, and returns the names of the pictures.

    Args:
        found: "levels" (n,), and by these the means "bend", "deviation" and "data" {end of the jump: RMS}.
        images: {row: (paths, columns, H, W, c)}, or None.
        shown: the places (columns,) of the images among the levels.
        folder: where the pictures are written.
    """
    _curves(found, folder / NAMES[0])
    if images is None:
        return [NAMES[0]]
    rows = np.concatenate([part[path] for path in range(len(next(iter(images.values())))) for part in images.values()])
    names = list(images) * len(next(iter(images.values())))
    levels = [f"{found['levels'][place]:.3g}" for place in shown]
    pictures.grid(rows, len(levels), path=folder / NAMES[1], row_labels=names, column_labels=levels)
    return list(NAMES)


def _curves(found: Mapping[str, Any], path: epath.Path) -> None:
    """Draws bend, deviation and the distance of x̂ from the end of the path by noise level."""
    figure = figures.new(12, 3.6)
    panels = figure.subplots(1, 3)
    levels = np.asarray(found["levels"])
    curves = [
        ("bend: mean of (dy/du − chord)²", {"": found["bend"]}),
        ("distance from the chord, RMS", {"": found["deviation"]}),
        ("x̂ minus the end of the path, RMS", found["data"]),
    ]
    for axes, (title, lines) in zip(panels, curves, strict=True):
        for i, (name, values) in enumerate(lines.items()):
            style = {"color": figures.COLOURS[i], "marker": figures.MARKERS[i], "ms": 3, "lw": 1.6}
            axes.plot(levels, values, label=name, **style)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(LEVEL)
        axes.set_ylim(bottom=0)
        axes.grid(color="#dddddd", lw=0.7, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Paths of F at r = t, straightness {found['straightness']:.3g}", fontsize=11)
    figures.legend_below(figure, *panels[2].get_legend_handles_labels())
    figures.save(figure, path)
