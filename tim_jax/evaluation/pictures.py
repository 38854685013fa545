"""Pictures: grids of images, and samples beside their nearest training images, as PNG at any path epath knows."""

import io

import numpy as np

from tim_jax.system import files, tiles


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


def grid(images, columns, path=None, scale=None, row_labels=(), column_labels=(), tile_labels=()):
    """Puts images into a grid, row by row.

    Args:
        images: (n, h, w, C) in [-1, 1], C 1 or 3.
        columns: images per row; the last row may be short.
        path: where to write a PNG, if anywhere.
        scale: whole factor of enlargement, by nearest neighbours; None enlarges small images (`tiles.SIDE`).
        row_labels: one text per row, drawn at the left.
        column_labels: one text per column, drawn above.
        tile_labels: one text per image, drawn below it.

    Returns:
        A PIL image.

    Raises:
        ValueError: for other numbers of channels, no images, columns or scale below one, or a wrong number of labels.
    """
    pixels = _pixels(images)
    if columns < 1:
        raise ValueError(f"columns is {columns}; it must be at least 1")
    rows = [pixels[i : i + columns] for i in range(0, len(pixels), columns)]
    labels = {"row_labels": row_labels, "column_labels": column_labels, "tile_labels": tile_labels}
    return _saved(tiles.sheet(rows, **labels, scale=scale), path)


def any_step_grid(images_by_steps, path=None, scale=None, column_labels=()):
    """Puts samples into a grid with a labelled row per step count; a column has one noise and one condition.

    Args:
        images_by_steps: {steps, or a text: (n, h, w, C)} in [-1, 1], or lists of n images (h, w, C) whose shapes
            differ from column to column; n is the same for all.
        path: where to write a PNG, if anywhere.
        scale: as in `grid`.
        column_labels: names of classes or captions, drawn above the columns.

    Returns:
        A PIL image.

    Raises:
        ValueError: for different numbers of images.
    """
    counts = {len(images) for images in images_by_steps.values()}
    if len(counts) != 1:
        raise ValueError(f"images per step count {sorted(counts)}: expected the same number at every step count")
    labels = [
        steps if isinstance(steps, str) else f"{steps} step" if steps == 1 else f"{steps} steps"
        for steps in images_by_steps
    ]
    rows = [[to_uint8(image) for image in images] for images in images_by_steps.values()]
    return _saved(tiles.sheet(rows, row_labels=labels, column_labels=column_labels, scale=scale), path)


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


def neighbours_picture(samples, batches, count=24, columns=6, path=None, scale=None, labels=()):
    """Draws pairs sample | nearest training image, with their distance over all pixels below each pair.

    A sampler that has memorised its data shows equal pairs and distances near zero. Distances are those of the
    samples as they are drawn, in 8 bits.

    Args:
        samples: (n, h, w, C) in [-1, 1].
        batches: of training images, as in `nearest_images`.
        count: how many of the samples, the first ones.
        columns: pairs per row.
        path: where to write a PNG, if anywhere.
        scale: as in `grid`.
        labels: one text per pair, such as its class; or none.

    Returns:
        A PIL image.
    """
    samples = as_written(np.asarray(samples)[:count])
    found, distances = nearest_images(samples, batches)
    left, right = _pixels(samples), _pixels(found)
    scale = tiles.enlargement(left) if scale is None else scale
    gap = np.full((left.shape[1], 1, 3), tiles.PAPER, np.uint8)
    pairs = [np.concatenate([gap, one, gap, other, gap], axis=1) for one, other in zip(left, right, strict=True)]
    texts = [f"{distance:.2f}" for distance in distances]
    picture = tiles.sheet(
        [pairs[i : i + columns] for i in range(0, len(pairs), columns)],
        tile_labels=[f"{label}: {text}" for label, text in zip(labels, texts, strict=True)] if labels else texts,
        title="each pair: sample | nearest training image, and their Euclidean distance over all pixels",
        scale=scale,
    )
    return _saved(picture, path)


def _pixels(images):
    pixels = to_uint8(images)
    if pixels.ndim != 4 or len(pixels) == 0:
        raise ValueError(f"images of shape {np.shape(images)}: expected (n, h, w, C) with n at least 1")
    return pixels


def _saved(picture, path):
    if path is not None:
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        files.replace(path, buffer.getvalue())
    return picture
