"""What stands in the way of reading a figure: texts on texts, texts over the edge, curves through a legend."""

from unittest import mock

import numpy as np
from matplotlib.text import Text
from matplotlib.transforms import Bbox

SLACK = 1.0  # pixels that may be shared: boxes of texts are a little larger than their letters
ROOM = 40  # pixels that axes must have along a side; bars of colours are thin


def unreadable(figure):
    """Returns a line for each pair of texts that overlap, and for each that is cut off or that a curve runs through."""
    texts = drawn_texts(figure)
    renderer = figure.canvas.get_renderer()
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    of_legends = {text for legend in legends for text in legend.findobj(Text)}
    boxes = [(repr(text.get_text()), text.get_window_extent(renderer)) for text in texts if text not in of_legends]
    boxes += [(f"legend {i}", legend.get_window_extent(renderer)) for i, legend in enumerate(legends)]
    corners = np.array([box.extents for _, box in boxes]).reshape(-1, 4)
    shared = np.minimum(corners[:, None, 2:], corners[None, :, 2:]) - np.maximum(
        corners[:, None, :2], corners[None, :, :2]
    )
    found = [f"{boxes[i][0]} is on {boxes[j][0]}" for i, j in np.argwhere(np.all(shared > SLACK, axis=2)) if i < j]
    found += [f"{name} is cut off" for name, box in boxes if not inside(box, figure.bbox)]
    for axes, line in ((axes, line) for axes in figure.axes for line in axes.lines):
        path = line.get_transform().transform_path(line.get_path())
        for i, legend in enumerate(legends):
            box = Bbox.intersection(legend.get_window_extent(renderer), axes.bbox)
            if box is not None and path.intersects_bbox(box, filled=False):
                found.append(f"{line.get_label()!r} runs through legend {i}")
    shown = [axes for axes in figure.axes if axes.axison]
    found += [f"axes {i} are {axes.bbox.width:.0f} × {axes.bbox.height:.0f} pixels" for i, axes in enumerate(shown)
              if max(axes.bbox.size) < ROOM or min(axes.bbox.size) < ROOM / 8]  # fmt: skip
    for i, axes in enumerate(shown):
        labels = [label for label in axes.yaxis.get_ticklabels(which="both") if label in texts]
        if axes.get_yscale() == "log" and len(labels) == 1:
            found.append(f"axes {i} have one label along y")
    return found


def drawn_texts(figure):
    """Draws a figure and returns the texts that are seen in it: not those of ticks that lie outside, for instance."""
    found, draw = {}, Text.draw

    def recorded(text, renderer):
        if text.get_visible() and text.get_text().strip():
            found[text] = None
        draw(text, renderer)

    with mock.patch.object(Text, "draw", recorded):
        figure.canvas.draw()
    return list(found)


def inside(box, around):
    return np.all(box.min >= around.min - SLACK) and np.all(box.max <= around.max + SLACK)
