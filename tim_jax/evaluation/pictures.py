"""Pictures: grids of images, and samples beside their nearest training images, as PNG at any path epath knows."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tim_jax.system import files

GAP = 2  # pixels between images
SIDE = 64  # small images are enlarged to at least this many pixels
PAPER, INK = (255, 255, 255), (40, 40, 40)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Converts images to bytes.

    Args:
        images: (..., h, w, C) in [-1, 1], C 1 or 3. Values outside are clipped, and NaN becomes mid-grey.

    Returns:
        uint8 (..., h, w, 3).

    Raises:
        ValueError: for other numbers of channels: latents are not pictures.
    """
    images = np.asarray(images, np.float32)
    if images.ndim < 3 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images of shape {images.shape}: a picture needs 1 or 3 channels; decode latents first")
    return np.broadcast_to(_levels(images), (*images.shape[:-1], 3))


def as_written(images: np.ndarray) -> np.ndarray:
    """The images that a file of 8 bits holds of some: what is looked at, and so what is measured.

    Args:
        images: (..., h, w, C) in about [-1, 1].

    Returns:
        float32 of that shape, of the values x / 127.5 - 1 for whole x from 0 to 255, as images of data sets have them.
    """
    return np.divide(_levels(images), np.float32(127.5), dtype=np.float32) - np.float32(1)


def _levels(images: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(np.nan_to_num(images, nan=0.0), -1, 1) * 127.5 + 127.5).astype(np.uint8)


def grid(images, columns, path=None, scale=None, row_labels=None):
    """Puts images into a grid, row by row.

    Args:
        images: (n, h, w, C) in [-1, 1], C 1 or 3.
        columns: images per row; the last row may be short.
        path: where to write a PNG, if anywhere.
        scale: whole factor of enlargement, by nearest neighbours; None enlarges images below 64 pixels.
        row_labels: one text per row, drawn at the left.

    Returns:
        A PIL image.

    Raises:
        ValueError: for other numbers of channels, no images, columns or scale below one, or a wrong number of labels.
    """
    tiles = _enlarge(images, scale)
    if columns < 1:
        raise ValueError(f"columns {columns}: expected at least 1")
    rows = -(-len(tiles) // columns)
    if row_labels is not None and len(row_labels) != rows:
        raise ValueError(f"row_labels: {len(row_labels)} for {rows} rows; expected one per row")
    h, w = tiles.shape[1:3]
    font = ImageFont.load_default(max(11, min(20, h // 3)))
    margin = 0
    if row_labels is not None:
        margin = int(max(font.getlength(label) for label in row_labels)) + 8 * GAP
    columns = min(columns, len(tiles))
    picture = Image.new("RGB", (margin + columns * (w + GAP) + GAP, rows * (h + GAP) + GAP), PAPER)
    for i, tile in enumerate(tiles):
        picture.paste(Image.fromarray(tile), (margin + GAP + i % columns * (w + GAP), GAP + i // columns * (h + GAP)))
    draw = ImageDraw.Draw(picture)
    for i, label in enumerate(row_labels or ()):
        draw.text((margin - 4 * GAP, GAP + i * (h + GAP) + h // 2), label, fill=INK, font=font, anchor="rm")
    return _saved(picture, path)


def any_step_grid(images_by_steps, path=None, scale=None):
    """Puts samples into a grid with a labelled row per step count; a column has one noise and one condition.

    Args:
        images_by_steps: {steps: (n, h, w, C)} in [-1, 1], or lists of n images (h, w, C) whose shapes differ from
            column to column; n is the same for all.
        path: where to write a PNG, if anywhere.
        scale: as in `grid`.

    Returns:
        A PIL image.

    Raises:
        ValueError: for different numbers of images.
    """
    counts = {len(images) for images in images_by_steps.values()}
    if len(counts) != 1:
        raise ValueError(f"images per step count {sorted(counts)}: expected the same number at every step count")
    labels = [f"{steps} step" if steps == 1 else f"{steps} steps" for steps in images_by_steps]
    shapes = {np.shape(image) for images in images_by_steps.values() for image in images}
    if len(shapes) == 1:
        return grid(np.concatenate(list(images_by_steps.values())), counts.pop(), path, scale, labels)
    scale = scale if scale is not None else max(1, -(-SIDE // max(max(shape[:2]) for shape in shapes)))
    lines = [[_enlarge(image[None], scale)[0] for image in images] for images in images_by_steps.values()]
    widths = [max(tile.shape[1] for tile in column) + GAP for column in zip(*lines, strict=True)]
    height = max(tile.shape[0] for line in lines for tile in line) + GAP
    font = ImageFont.load_default(max(11, min(20, height // 3)))
    margin = int(max(font.getlength(label) for label in labels)) + 8 * GAP
    picture = Image.new("RGB", (margin + sum(widths) + GAP, len(lines) * height + GAP), PAPER)
    draw = ImageDraw.Draw(picture)
    for i, (label, line) in enumerate(zip(labels, lines, strict=True)):
        draw.text((margin - 4 * GAP, GAP + i * height + height // 2), label, fill=INK, font=font, anchor="rm")
        left = margin + GAP
        for tile, width in zip(line, widths, strict=True):
            at = left + (width - GAP - tile.shape[1]) // 2, GAP + i * height + (height - GAP - tile.shape[0]) // 2
            picture.paste(Image.fromarray(tile), at)
            left += width
    return _saved(picture, path)


def nearest(samples, training, count=None):
    """Finds the nearest training image, in pixels, of some samples.

    Args:
        samples: (n, h, w, C).
        training: (m, h, w, C).
        count: how many of the samples, the first ones; by default all.

    Returns:
        Indices (count,) into training, and Euclidean distances (count,) over all pixels in float64.

    Raises:
        ValueError: if the images differ in shape.
    """
    if np.shape(samples)[1:] != np.shape(training)[1:]:
        shapes = np.shape(samples)[1:], np.shape(training)[1:]
        raise ValueError(f"samples of shape {shapes[0]}: expected that of training {shapes[1]}")
    y = np.asarray(training, np.float64).reshape(len(training), -1)
    x = np.asarray(samples, np.float64)[:count].reshape(-1, y.shape[1])
    squares = (y**2).sum(axis=1)
    indices = np.concatenate(
        [np.argmin(squares[None, :] - 2 * x[i : i + 1024] @ y.T, axis=1) for i in range(0, max(len(x), 1), 1024)]
    )
    return indices, np.linalg.norm(x - y[indices], axis=1)


def nearest_images(samples, batches):
    """Finds the nearest of the images that come in batches, in pixels, of every sample.

    Args:
        samples: (n, h, w, C).
        batches: of images (m, h, w, C).

    Returns:
        Images (n, h, w, C), and Euclidean distances (n,) over all pixels in float64.

    Raises:
        ValueError: if there are no images, or they differ in shape.
    """
    found, distances = None, np.full(len(samples), np.inf)
    for batch in batches:
        indices, nearer = nearest(samples, batch)
        found = np.array(batch[indices]) if found is None else found
        better = nearer < distances
        found[better], distances[better] = batch[indices[better]], nearer[better]
    if found is None:
        raise ValueError("training: there are no images to look for neighbours in")
    return found, distances


def neighbours_picture(samples, batches, count=24, columns=6, path=None, scale=None):
    """Draws pairs sample | nearest training image, with their distance over all pixels below each pair.

    A sampler that has learnt its data by heart shows equal pairs and distances near zero. Distances are those of the
    samples as they are drawn, in 8 bits.

    Args:
        samples: (n, h, w, C) in [-1, 1].
        batches: of training images, as in `nearest_images`.
        count: how many of the samples, the first ones.
        columns: pairs per row.
        path: where to write a PNG, if anywhere.
        scale: as in `grid`.

    Returns:
        A PIL image.
    """
    samples = as_written(np.asarray(samples)[:count])
    found, distances = nearest_images(samples, batches)
    left, right = _enlarge(samples, scale), _enlarge(found, scale)
    n, h, w, _ = left.shape
    columns = min(columns, n)
    font = ImageFont.load_default(12)
    head, line, wide = 26, 18, 2 * w + GAP + 12
    title = "each pair: sample | nearest training image, and their Euclidean distance over all pixels"
    width = max(columns * wide, int(font.getlength(title)) + 12) + 12
    picture = Image.new("RGB", (width, head + -(-n // columns) * (h + line) + GAP), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((12, head // 2), title, fill=INK, font=font, anchor="lm")
    for i in range(n):
        x, y = 12 + i % columns * wide, head + i // columns * (h + line)
        picture.paste(Image.fromarray(left[i]), (x, y))
        picture.paste(Image.fromarray(right[i]), (x + w + GAP, y))
        text = f"{distances[i]:.2f}"
        draw.text((x + w + GAP // 2, y + h + line // 2 - 1), text, fill=INK, font=font, anchor="mm")
    return _saved(picture, path)


def _enlarge(images, scale):
    tiles = to_uint8(images)
    if tiles.ndim != 4 or len(tiles) == 0:
        raise ValueError(f"images of shape {np.shape(images)}: expected (n, h, w, C) with n at least 1")
    scale = scale if scale is not None else max(1, -(-SIDE // max(tiles.shape[1:3])))
    if scale < 1:
        raise ValueError(f"scale {scale}: expected a whole number of at least 1")
    return np.ascontiguousarray(tiles.repeat(scale, axis=1).repeat(scale, axis=2))


def _saved(picture, path):
    if path is not None:
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        files.replace(path, buffer.getvalue())
    return picture
