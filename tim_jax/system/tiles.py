"""Sheets of labelled tiles: small pictures side by side, enlarged so that people can see them."""

import functools
import importlib
import importlib.util
import pathlib
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 4  # pixels between tiles
SIDE = 80  # of a tile in pixels, at least, as the square root of its area
TEXT = 13  # pixels of the letters above and below tiles
LINES = 3  # of a label, at most
FONT = "fonts/ttf/DejaVuSans.ttf"
PAPER, INK = (255, 255, 255), (40, 40, 40)


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's own font, which has more alphabets than Pillow's; size: in pixels."""
    return ImageFont.truetype(_file(), size)


def _file() -> pathlib.Path:
    """Where the font is, found without importing Matplotlib, which makes folders in the user's home."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None and spec.origin is not None, "a package that this one depends on"
    file = pathlib.Path(spec.origin).parent / "mpl-data" / FONT
    if not file.is_file():  # a distribution has put it elsewhere
        file = pathlib.Path(importlib.import_module("matplotlib").get_data_path()) / FONT
    return file


@functools.cache
def _has(letter: str) -> bool:
    """Whether the font has a letter: for those that it has not it draws one and the same box."""
    glyph, box = (font(20).getmask(text) for text in (letter, "\U0010ffff"))
    return letter == " " or (glyph.size, bytes(glyph)) != (box.size, bytes(box))


def drawable(text: str) -> str:
    """A text with "?" for letters that the font has not, such as Chinese ones, which would be drawn as empty boxes."""
    return re.sub("\0+", "?", "".join(letter if _has(letter) else "\0" for letter in " ".join(text.split())))


def enlargement(tiles: Sequence[np.ndarray]) -> int:
    """The whole factor at which the largest of some tiles (h, w, 3) is about SIDE pixels wide, at least 1."""
    return max(1, -int(-SIDE // max(tile.shape[0] * tile.shape[1] for tile in tiles) ** 0.5))


def wrapped(text: str, width: int, size: int = TEXT, lines: int = LINES) -> str:
    """Breaks a text into lines that fit.

    Args:
        text: of words; those that are too long are broken.
        width: of a line in pixels.
        size: of the letters in pixels.
        lines: at most; what is left over is cut off, which "…" shows.
    """
    found = [""]
    for word in text.split():
        longer = f"{found[-1]} {word}".lstrip()
        if _fits(longer, width, size):
            found[-1] = longer
            continue
        found.append(word) if found[-1] else found.__setitem__(-1, word)
        while not _fits(found[-1], width, size) and len(found[-1]) > 1:
            whole = found.pop()
            fit = next((n for n in range(len(whole) - 1, 1, -1) if _fits(whole[:n], width, size)), 1)
            found += [whole[:fit], whole[fit:]]
    if len(found) > lines:
        last = found[lines - 1]
        while last and not _fits(last + "…", width, size):
            last = last[:-1]
        found[lines - 1 :] = [last.rstrip() + "…"]
    return "\n".join(found)


def _fits(text: str, width: int, size: int) -> bool:
    return font(size).getlength(text) <= width


def sheet(
    rows: Sequence[Sequence[np.ndarray]],
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    tile_labels: Sequence[str] = (),
    title: str = "",
    scale: int | None = None,
) -> Image.Image:
    """Draws tiles in rows, with words beside rows, above columns and below tiles.

    Args:
        rows: of tiles, uint8 (h, w, 3). Sizes may differ, and rows may be shorter than the first.
        row_labels: one text per row, drawn at the left; or none.
        column_labels: one text per column of the longest row, drawn above, once for neighbours that have the same; or
            none.
        tile_labels: one text per tile, row by row, drawn below it; or none.
        title: drawn at the top.
        scale: whole factor of enlargement, by nearest neighbours; None for tiles of about SIDE pixels.

    Raises:
        ValueError: no tiles, a scale below 1, or a wrong number of labels.
    """
    tiles = [tile for row in rows for tile in row]
    if not tiles:
        raise ValueError("there are no tiles to draw")
    for name, labels, count in (
        ("row_labels", row_labels, len(rows)),
        ("column_labels", column_labels, max(map(len, rows))),
        ("tile_labels", tile_labels, len(tiles)),
    ):
        if labels and len(labels) != count:
            raise ValueError(f"{name}: {len(labels)}; there must be {count}, or none")
    scale = enlargement(tiles) if scale is None else scale
    if scale < 1:
        raise ValueError(f"scale is {scale}; it must be a whole number of at least 1")
    columns = max(map(len, rows))
    widths = [scale * max(row[i].shape[1] for row in rows if i < len(row)) for i in range(columns)]
    heights = [scale * max(tile.shape[0] for tile in row) for row in rows]
    beside = max(11, min(20, min(heights) // 3))  # pixels of the letters beside rows
    margin = int(max(font(beside).getlength(label) for label in row_labels)) + 4 * GAP if row_labels else 0
    groups = _groups(column_labels)  # neighbours of one label share it
    above = [wrapped(column_labels[i], sum(widths[i:j]) + (j - i - 1) * GAP) for i, j in groups]
    places = [(r, c) for r, row in enumerate(rows) for c in range(len(row))]
    below = [wrapped(label, widths[c], lines=2) for label, (_, c) in zip(tile_labels, places)]
    head = _height([title]) + _height(above)
    feet = [_height([text for text, (at, _) in zip(below, places) if at == r]) for r in range(len(rows))]
    lefts = np.cumsum([margin + GAP, *(width + GAP for width in widths)])
    tops = np.cumsum([head + GAP, *(height + foot + GAP for height, foot in zip(heights, feet))])
    width = max(int(lefts[-1]), int(font(TEXT).getlength(title)) + 2 * GAP)
    picture = Image.new("RGB", (width, int(tops[-1])), PAPER)
    draw = ImageDraw.Draw(picture)

    def write(at: tuple[float, float], text: str, size: int, anchor: str) -> None:
        draw.text(at, text, fill=INK, font=font(size), anchor=anchor, align="center", spacing=2)

    write((GAP, GAP), title, TEXT, "la")
    for (i, j), text in zip(groups, above):
        write(((lefts[i] + lefts[j] - GAP) / 2, head), text, TEXT, "md")
    for top, height, text in zip(tops, heights, row_labels):
        write((margin - 2 * GAP, top + height / 2), text, beside, "rm")
    for i, (r, c) in enumerate(places):
        tile = rows[r][c].repeat(scale, axis=0).repeat(scale, axis=1)
        high, wide = tile.shape[:2]
        at = int(lefts[c]) + (widths[c] - wide) // 2, int(tops[r]) + (heights[r] - high) // 2
        picture.paste(Image.fromarray(np.ascontiguousarray(tile)), at)
        if below:
            write((lefts[c] + widths[c] / 2, tops[r] + heights[r] + GAP), below[i], TEXT, "ma")
    return picture


def _groups(labels: Sequence[str]) -> list[tuple[int, int]]:
    """(first, end) of the longest parts of a sequence that are all of one label."""
    ends = [i + 1 for i in range(len(labels)) if labels[i : i + 1] != labels[i + 1 : i + 2]]
    return list(zip([0, *ends], ends))


def _height(texts: Sequence[str]) -> int:
    """Pixels of the line or lines that some texts stand in, 0 where all are empty."""
    lines = max((text.count("\n") + 1 for text in texts if text), default=0)
    return lines * (TEXT + 5) + GAP if lines else 0
