"""A row as the network will see it: brought to its bucket's shape, perhaps mirrored, one of its captions chosen."""

import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from tim_jax.data.buckets import Fitting, Shape
from tim_jax.data.decode import pixels
from tim_jax.data.faults import BadRecord
from tim_jax.data.order import uniform

# Passed to Pillow: very large images are first made smaller by whole factors, which costs little and changes little.
REDUCING_GAP = 3.0
NOISE = 2  # the stream of random numbers that noise on latents is drawn by


@dataclasses.dataclass(frozen=True)
class Look:
    """flip: the share of rows that are mirrored. random_crop: where an image is cropped, at random or in the middle.
    side: pixels, or latent positions, per token and direction, for features that lie on the grid of tokens."""

    flip: float = 0.0
    random_crop: bool = False
    side: int = 1

    def check(self) -> None:
        """Raises ValueError for a share outside [0, 1]."""
        if not 0 <= self.flip <= 1:
            raise ValueError(f"data.flip is {self.flip}; it must lie in [0, 1]")


def draws(seed: int, step: int, rows: np.ndarray) -> np.ndarray:
    """(n, 5) random numbers in (0, 1) for rows (n,) of the global batch of a step: mirroring, caption, crop (two) and
    noise of latents that are sampled."""
    four = np.asarray(rows, np.int64)[:, None] * 4 + np.arange(4)[None, :]
    noise = uniform(seed, step, rows, NOISE)
    return np.concatenate([uniform(seed, step, four.ravel()).reshape(-1, 4), noise[:, None]], axis=1)


def size_of(image: np.ndarray | Image.Image) -> Shape:
    """(height, width) of an image."""
    return image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)


def cover(
    image: np.ndarray | Image.Image, shape: Shape, fitting: Fitting, at: tuple[float, float] = (0.5, 0.5)
) -> np.ndarray:
    """An image, array (h, w, c) or Pillow's, as (H, W, c): resized to cover the shape (not latents) and cropped.

    at: where the crop lies, as shares of the room there is: (0.5, 0.5) is the middle. Raises BadRecord if the image
    would have to be enlarged and may not be, or would lose more than it may.
    """
    (h, w), (H, W) = size_of(image), shape
    is_latent = isinstance(image, np.ndarray) and image.dtype != np.uint8
    if (h, w) == (H, W):
        return image if isinstance(image, np.ndarray) else pixels(image)
    scale = 1.0 if is_latent else max(H / h, W / w)
    if (H > h or W > w) and (is_latent or not fitting.enlarge):
        raise BadRecord("size", f"{h}x{w}, too small for {H}x{W}")
    if 1 - H * W / (h * w * scale**2) > fitting.max_cropped + 1e-6:
        raise BadRecord("size", f"{h}x{w}, loses too much as {H}x{W}")
    kept_h, kept_w = min(H / scale, h), min(W / scale, w)
    top, left = (h - kept_h) * at[0], (w - kept_w) * at[1]
    if is_latent:
        top, left = round(top), round(left)
        return image[top : top + H, left : left + W]
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    box = (left, top, min(left + kept_w, w), min(top + kept_h, h))
    return pixels(image.resize((W, H), Image.Resampling.LANCZOS, box=box, reducing_gap=REDUCING_GAP))


def fit(
    row: dict[str, Any],
    shape: Shape,
    fitting: Fitting,
    look: Look,
    draw: np.ndarray,
    null: dict[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """The row of a source as it goes into a batch of the bucket `shape`; draw: a row of `draws`.

    null: "text" (M, T) and "mask" (M,) of the empty prompt, where rows have "texts". Returns {"image" (H, W, c),
    "label", "index"} and, where the row has them, "caption", "text" (M, T) with "mask" (M,), "features" (tokens, Z),
    and "noise" as it is. Raises BadRecord.
    """
    mirrored = draw[0] < look.flip
    at = tuple(draw[2:4]) if look.random_crop else (0.5, 0.5)
    stored = "flipped" in row
    source = row["flipped"] if mirrored and stored else row["image"]
    if mirrored and stored:
        at = (at[0], 1 - at[1])
    image = cover(source, shape, fitting, at)
    if "deviations" in row:
        noise = np.random.default_rng(int(draw[4] * 2**52)).standard_normal(image.shape, np.float32)
        image = image + cover(row["deviations"][int(mirrored)], shape, fitting, at) * noise
    made = {"image": image[:, ::-1] if mirrored and not stored else image, "label": row["label"], "index": row["index"]}
    if "captions" in row:
        chosen = int(draw[1] * len(row["captions"]))
        made["caption"] = row["captions"][chosen]
        if "texts" in row:
            made |= padded(row["texts"][chosen], null)
    if "noise" in row:
        made["noise"] = row["noise"]
    if "features" in row:
        made["features"] = _on_tokens(row["features"][int(mirrored)], size_of(source), shape, look.side)
    return made


def padded(text: np.ndarray, null: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{"text" (M, T) float32, "mask" (M,)} of the features (L, T) of a caption's own tokens.

    Padding is as the empty prompt ends, with a padding token, whose features are the same everywhere. Raises BadRecord
    for a text that is longer, or of another width.
    """
    (M, T), (L, width) = null["text"].shape, text.shape
    if L > M or width != T:
        raise BadRecord("metadata", f"text is {text.shape}, must be {T} wide and no longer than {M}")
    full = np.empty((M, T), np.float32)
    full[:L], full[L:] = text, null["text"][-1]
    return {"text": full, "mask": np.arange(M) < L}


def _on_tokens(features: np.ndarray, size: Shape, shape: Shape, side: int) -> np.ndarray:
    """Features (rows, columns, Z) of a whole image as (tokens, Z). Raises BadRecord unless they lie on its tokens."""
    grid = (shape[0] // side, shape[1] // side)
    if size != shape or features.shape[:2] != grid:
        raise BadRecord("features", f"{features.shape[:2]} for {size}, must be {grid} for {shape}")
    return features.reshape(-1, features.shape[-1])
