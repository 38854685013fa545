"""An example as the network sees it: brought to its bucket's shape, perhaps mirrored, with one of its captions."""

import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from tim_jax.data.bad_records import BadRecord
from tim_jax.data.buckets import Fitting, Shape
from tim_jax.data.decode import pixels
from tim_jax.data.order import uniform

# For Pillow: very large images are first shrunk by whole factors, which costs little and changes little.
REDUCING_GAP = 3.0
# Of an image beside latents, for each of their tokens and direction, as published: 256 for 16 × 16 tokens.
PIXELS_PER_TOKEN = 16
NOISE_STREAM = 2  # the stream of random numbers for the noise of latents that are sampled around their means


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How examples are varied, and on which grid their features lie.

    Attributes:
        flip: the share of examples that are mirrored, in [0, 1].
        random_crop: whether images are cropped at a random place, not in the middle.
        side: pixels, or latent positions, per token and direction, for features that lie on the grid of tokens.
    """

    flip: float = 0.0
    random_crop: bool = False
    side: int = 1

    def check(self) -> None:
        """Raises ValueError for a share outside [0, 1]."""
        if not 0 <= self.flip <= 1:
            raise ValueError(f"data.flip is {self.flip}; it must lie in [0, 1]")


def draws(seed: int, step: int, slots: np.ndarray) -> np.ndarray:
    """The random numbers by which the examples of a step are varied.

    Args:
        seed: of the run.
        step: of training.
        slots: places of the examples in the global batch, (n,).

    Returns:
        (n, 5) in (0, 1): mirroring, caption, crop (two) and the noise of latents that are sampled.
    """
    four = np.asarray(slots, np.int64)[:, None] * 4 + np.arange(4)[None, :]
    noise = uniform(seed, step, slots, NOISE_STREAM)
    return np.concatenate([uniform(seed, step, four.ravel()).reshape(-1, 4), noise[:, None]], axis=1)


def size_of(image: np.ndarray | Image.Image) -> Shape:
    """The (height, width) of an image."""
    return (image.shape[0], image.shape[1]) if isinstance(image, np.ndarray) else (image.height, image.width)


def resize_and_crop(
    image: np.ndarray | Image.Image, shape: Shape, fitting: Fitting, at: tuple[float, float] = (0.5, 0.5)
) -> np.ndarray:
    """Resizes an image to cover a shape and crops what sticks out. Latents are cropped only.

    Args:
        image: an array (h, w, c), or Pillow's image in mode L or RGB; floats are latents.
        shape: the (H, W) to bring it to.
        fitting: what may be enlarged or cropped.
        at: where the crop lies, as shares of the room there is: (0.5, 0.5) is the middle.

    Returns:
        The array (H, W, c), uint8 or, of latents, as they are.

    Raises:
        BadRecord: the image would have to be enlarged and may not be, or would lose more than it may.
    """
    (h, w), (H, W) = size_of(image), shape
    if (h, w) == (H, W):
        return image if isinstance(image, np.ndarray) else pixels(image)
    is_latent = isinstance(image, np.ndarray) and image.dtype != np.uint8
    scale = 1.0 if is_latent else max(H / h, W / w)
    if (H > h or W > w) and (is_latent or not fitting.enlarge):
        raise BadRecord("size", f"{h}x{w}, too small for {H}x{W}")
    if 1 - H * W / (h * w * scale**2) > fitting.max_cropped + 1e-6:
        raise BadRecord("size", f"{h}x{w}, loses too much as {H}x{W}")
    kept_h, kept_w = min(H / scale, h), min(W / scale, w)
    top, left = (h - kept_h) * at[0], (w - kept_w) * at[1]
    if isinstance(image, np.ndarray) and is_latent:
        first_row, first_column = round(top), round(left)
        return image[first_row : first_row + H, first_column : first_column + W]
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    box = (left, top, min(left + kept_w, w), min(top + kept_h, h))
    return pixels(image.resize((W, H), Image.Resampling.LANCZOS, box=box, reducing_gap=REDUCING_GAP))


def fit(
    example: dict[str, Any],
    shape: Shape,
    fitting: Fitting,
    augmentation: Augmentation,
    draw: np.ndarray,
    null_text: dict[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """An example of a source as it goes into a batch.

    Args:
        example: as `Source.read` gives it.
        shape: (H, W) of its bucket.
        fitting: what may be enlarged or cropped.
        augmentation: how it is varied.
        draw: the random numbers by which it is varied, one line of `draws`.
        null_text: "text" (M, T) and "mask" (M,) of the empty prompt, for examples with "texts".

    Returns:
        {"image" (H, W, c), "label", "index"} and, where the example has them, "caption", "text" (M, T) with "mask"
        (M,), "features" (tokens, Z), "original", uint8 with PIXELS_PER_TOKEN pixels for a token of the latent and
        mirrored as it is, "loser", brought to the same shape and mirrored alike, "noise" and "reward", as they are.

    Raises:
        BadRecord: it does not fit its bucket, or its texts or features are not what they should be.
    """
    mirrored = draw[0] < augmentation.flip
    at = (float(draw[2]), float(draw[3])) if augmentation.random_crop else (0.5, 0.5)
    stored = "flipped" in example
    source = example["flipped"] if mirrored and stored else example["image"]
    if mirrored and stored:
        at = (at[0], 1 - at[1])
    image = resize_and_crop(source, shape, fitting, at)
    if "deviations" in example:
        noise = np.random.default_rng(int(draw[4] * 2**52)).standard_normal(image.shape, np.float32)
        image = image + resize_and_crop(example["deviations"][int(mirrored)], shape, fitting, at) * noise
    image = image[:, ::-1] if mirrored and not stored else image
    made = {"image": image, "label": example["label"], "index": example["index"]}
    if "captions" in example:
        chosen = int(draw[1] * len(example["captions"]))
        made["caption"] = example["captions"][chosen]
        if "texts" in example:
            made |= padded(example["texts"][chosen], null_text or {})
    made |= {name: example[name] for name in ("noise", "reward") if name in example}
    if "loser" in example:
        loser = resize_and_crop(example["loser"], shape, fitting, at)
        made["loser"] = loser[:, ::-1] if mirrored else loser
    if "features" in example:
        made["features"] = _on_tokens(example["features"][int(mirrored)], size_of(source), shape, augmentation.side)
    if "original" in example:
        original = _over_tokens(example["original"], size_of(source), shape, augmentation.side)
        made["original"] = original[:, ::-1] if mirrored else original
    return made


def padded(text: np.ndarray, null_text: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Pads the features of a caption to the length of all texts.

    Padding is as the empty prompt ends, with a padding token, whose features are the same everywhere.

    Args:
        text: the features (L, T) of the caption's own tokens.
        null_text: "text" (M, T) of the empty prompt.

    Returns:
        {"text" (M, T) float32, "mask" (M,)}, the mask true for the caption's own tokens.

    Raises:
        BadRecord: the text is longer than M, or of another width.
    """
    (M, T), (L, width) = null_text["text"].shape, text.shape
    if L > M or width != T:
        raise BadRecord("metadata", f"text is {text.shape}, must be {T} wide and no longer than {M}")
    full = np.empty((M, T), np.float32)
    full[:L], full[L:] = text, null_text["text"][-1]
    return {"text": full, "mask": np.arange(M) < L}


def _on_tokens(features: np.ndarray, size: Shape, shape: Shape, side: int) -> np.ndarray:
    """Features (rows, columns, Z) of a whole image as (tokens, Z). Raises BadRecord unless they lie on its tokens."""
    grid = (shape[0] // side, shape[1] // side)
    if size != shape or features.shape[:2] != grid:
        raise BadRecord("features", f"{features.shape[:2]} for {size}, must be {grid} for {shape}")
    return features.reshape(-1, features.shape[-1])


def _over_tokens(original: Image.Image | np.ndarray, size: Shape, shape: Shape, side: int) -> np.ndarray:
    """The middle of the image that a whole latent was made of, with its sides. Raises BadRecord if it is cropped."""
    if size != shape:
        raise BadRecord("features", f"latent {size} must be {shape}, as only the features of whole ones are known")
    pixel_shape = (shape[0] // side * PIXELS_PER_TOKEN, shape[1] // side * PIXELS_PER_TOKEN)
    return resize_and_crop(original, pixel_shape, Fitting(max_cropped=1.0, enlarge=True))
