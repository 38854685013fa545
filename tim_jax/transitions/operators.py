"""Measurements of images by name, for steering: y = A(x) of images x (B, h, w, C) in [−1, 1].

A loss compares A(x̂) with what was measured. Its residual is g (A(x̂) − y), where the gain g makes the largest singular
value of g A one (of blurs: at most one). So a scale of steering means the same for all operators: a step of gradient
descent of length 1 on ½ ‖residual‖² goes all the way wherever A only selects or averages.

Names have numbers behind them, "super_resolution:4". An operator of one's own is OPERATORS["mine"] = Operator(measure),
in a plugin.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Shape = tuple[int, int, int]  # h, w, C

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
EPSILON = 1e-12  # under the root of a variance, so that flat images have a gradient


def _anything(shape: Shape, *numbers: float) -> str:
    return ""


@dataclasses.dataclass(frozen=True)
class Operator:
    """A measurement.

    Attributes:
        measure: (x (B, h, w, C), *numbers) → y (B, …), differentiable. Where it is linear `resample` is exact at once.
        numbers: The defaults of the numbers behind its name.
        gain: (shape of x without B, *numbers) → g.
        refuses: (shape of x without B, *numbers) → what is wrong with them, as "it must …" goes on; "" for nothing.
        masked: Whether it measures nothing unless a mask says where.
    """

    measure: Callable[..., jax.Array]
    numbers: tuple[float, ...] = ()
    gain: Callable[..., float] = lambda shape, *numbers: 1.0
    refuses: Callable[..., str] = _anything
    masked: bool = False


def pool(x: jax.Array, factor: float) -> jax.Array:
    """Means over squares: (B, h/n, w/n, C)."""
    B, h, w, C = x.shape
    n = int(factor)
    means: jax.Array = x.reshape(B, h // n, n, w // n, n, C).mean(axis=(2, 4))
    return means


def _no_factor(shape: Shape, factor: float) -> str:
    h, w, _ = shape
    if factor != int(factor) or factor < 2:
        return "have a whole factor of at least 2"
    return f"have a factor that divides {h} and {w}, the size of images" if h % factor or w % factor else ""


def filtered(x: jax.Array, kernel: np.ndarray) -> jax.Array:
    """Every channel convolved with a kernel (2p + 1, 2q + 1), the image continued by reflection."""
    p, q = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = jnp.pad(x, ((0, 0), (p, p), (q, q), (0, 0)), mode="reflect")
    C = x.shape[-1]
    weights = jnp.broadcast_to(jnp.asarray(kernel, x.dtype)[:, :, None, None], (*kernel.shape, 1, C))
    return jax.lax.conv_general_dilated(
        padded, weights, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=C
    )


def without_box(x: jax.Array, side: float) -> jax.Array:
    """The image with zeros in a rectangle in its middle, whose sides are that share of the image's."""
    h, w = x.shape[1:3]
    rows, columns = (np.abs(2 * np.arange(n) + 1 - n) < n * side for n in (h, w))
    return x * jnp.asarray(~np.outer(rows, columns), x.dtype)[None, :, :, None]


def _no_share(shape: Shape, side: float) -> str:
    return "" if 0 < side < 1 else "have a share above 0 and below 1"


def gaussian(std: float) -> np.ndarray:
    """The weights (2p + 1,) of a normal distribution at −p … p, p = ⌈3 std⌉, of sum 1."""
    radius = math.ceil(3 * std)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / std) ** 2)
    return np.asarray(weights / weights.sum())


def gaussian_blur(x: jax.Array, std: float) -> jax.Array:
    """The image blurred by a Gaussian of that standard deviation in pixels."""
    line = gaussian(std)
    return filtered(filtered(x, line[:, None]), line[None, :])


def motion(length: float, angle: float) -> np.ndarray:
    """The weights (2p + 1, 2p + 1) of a line through the middle, each the part of its length in that pixel."""
    radius, count = math.ceil(length / 2), 64 * math.ceil(length)
    along, radians = ((np.arange(count) + 0.5) / count - 0.5) * length, math.radians(angle)
    kernel, points = np.zeros((2 * radius + 1,) * 2), np.stack([-math.sin(radians) * along, math.cos(radians) * along])
    np.add.at(kernel, tuple(np.floor(points + 0.5).astype(int) + radius), 1.0)
    return kernel / count


def motion_blur(x: jax.Array, length: float, angle: float) -> jax.Array:
    """The image moved along a line of so many pixels, at an angle in degrees (0: along rows, counter-clockwise)."""
    return filtered(x, motion(length, angle))


def _too_wide(radius: Callable[..., int]) -> Callable[..., str]:
    def refuses(shape: Shape, *numbers: float) -> str:
        if not 0 < numbers[0] < math.inf:
            return "have a width above 0"
        return "" if radius(*numbers) < min(shape[:2]) else f"have a narrower blur for images of {shape[0]}x{shape[1]}"

    return refuses


def greyscale(x: jax.Array) -> jax.Array:
    """Luma (ITU-R BT.601): (B, h, w, 1)."""
    return (x @ jnp.asarray(LUMA, x.dtype))[..., None]


def _no_colour(shape: Shape) -> str:
    return "" if shape[-1] == 3 else f"be another one for images of {shape[-1]} channels"


def colour_statistics(x: jax.Array) -> jax.Array:
    """Mean and standard deviation of each channel: (B, 2, C)."""
    mean = x.mean(axis=(1, 2))
    std = jnp.sqrt(((x - mean[:, None, None]) ** 2).mean(axis=(1, 2)) + EPSILON)
    return jnp.stack([mean, std], axis=1)


OPERATORS: dict[str, Operator] = {
    "inpainting": Operator(lambda x: x, masked=True),
    "box_inpainting": Operator(without_box, (0.5,), refuses=_no_share),
    "super_resolution": Operator(pool, (4.0,), lambda shape, factor: factor, _no_factor),
    "gaussian_blur": Operator(gaussian_blur, (1.0,), refuses=_too_wide(lambda std: math.ceil(3 * std))),
    "motion_blur": Operator(motion_blur, (5.0, 0.0), refuses=_too_wide(lambda length, angle: math.ceil(length / 2))),
    "greyscale": Operator(greyscale, (), lambda shape: float(1 / np.linalg.norm(LUMA)), _no_colour),
    "colour_statistics": Operator(colour_statistics, (), lambda shape: math.sqrt(shape[0] * shape[1])),
}


def picture(y: np.ndarray, size: tuple[int, int], channels: int) -> np.ndarray | None:
    """Returns measurements (n, …) as pictures (n, *size, channels) whose pixels repeat; None where they are none."""
    if y.ndim != 4 or size[0] % y.shape[1] or size[1] % y.shape[2]:
        return None
    larger = y.repeat(size[0] // y.shape[1], axis=1).repeat(size[1] // y.shape[2], axis=2)
    return np.broadcast_to(larger, (*larger.shape[:3], channels))


def parse(text: str) -> tuple[str, tuple[float, ...]]:
    """Returns name and numbers of "NAME:NUMBER:…", those left out by their defaults; the name may be of no operator.

    Raises:
        ValueError: What comes behind the name is no number, or there are too many; the message begins with "it must".
    """
    name, *given = text.split(":")
    defaults = OPERATORS[name].numbers if name in OPERATORS else ()
    try:
        numbers = tuple(float(number) for number in given)
    except ValueError:
        raise ValueError(f"it must have numbers behind its name, such as {':'.join([name, '4'])}") from None
    if len(numbers) > len(defaults):
        raise ValueError(f"it must have {len(defaults) or 'no'} numbers behind its name at most")
    return name, numbers + defaults[len(numbers) :]


def feathered(mask: np.ndarray, width: float) -> np.ndarray:
    """Returns a mask (h, w) blurred by a Gaussian of `width` pixels, continued by its edges; 0: as it is."""
    if not width:
        return mask
    line = gaussian(width)
    p = len(line) // 2
    for axis in (0, 1):
        padded = np.pad(mask, [(p, p) if axis == each else (0, 0) for each in (0, 1)], mode="edge")
        mask = np.apply_along_axis(lambda row: np.convolve(row, line, mode="valid"), axis, padded)
    return mask
