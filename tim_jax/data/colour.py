"""Colours as a viewer shows them: pixels of an embedded ICC profile as sRGB, by littleCMS.

A profile is used where it describes a device with the channels that the image has; others, and damaged ones, count as
none. Most embedded profiles are sRGB itself: an image keeps its values where its profile changes no colour by more than
the rounding to eight bits does. A PNG may say its gamma and its primaries in place of a profile
(https://www.w3.org/TR/png-3/#11gAMA).
"""

import functools
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageCms

DEVICES = ("mntr", "scnr", "prtr", "spac")
SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # of a profile, for each mode
NEAR = 0.05  # gammas that differ by less from that of displays are it, as libpng has it
SRGB = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # x, y of white, red, green and blue
# To the responses of the eye in which white is adapted (Lam 1985).
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
LATTICE = np.linspace(0, 255, 16).round().astype(np.uint8)  # 16 is what makes steps of 17 whole


def to_srgb(image: Image.Image, info: Mapping[Any, Any]) -> Image.Image:
    """Converts an image of mode L, RGB or CMYK to L or RGB, by what its file says of its colours (Pillow's `info`)."""
    profile, mode = info.get("icc_profile"), image.mode
    if mode != "CMYK" and profile is None and "gamma" in info and "srgb" not in info:
        return _from_gamma(image, float(info["gamma"]), info.get("chromaticity"))
    transform = _transform(profile, mode) if isinstance(profile, bytes) else None
    if transform is None:
        return image if mode != "CMYK" else image.convert("RGB")
    converted = transform.apply(image)
    return converted.convert("L") if mode == "L" else converted


def from_lab(image: Image.Image) -> Image.Image:
    """Converts an image of mode LAB to RGB."""
    return _between(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), "LAB").apply(image)


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The conversion to sRGB; None where there is none to make."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        about = opened.profile
        if about.device_class not in DEVICES or about.xcolor_space.strip() != SPACES[mode]:
            return None
        transform = _between(opened, mode)
    except (ImageCms.PyCMSError, OSError, UnicodeDecodeError):
        return None
    return None if mode != "CMYK" and _changes_nothing(transform, mode) else transform


def _between(profile: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    """The conversion from a profile to sRGB, right to the rounding."""
    # What littleCMS makes of tables to be quick is off by up to 16 of 255 in dark colours.
    flags = ImageCms.Flags.NONE if profile.profile.is_matrix_shaper else ImageCms.Flags.NOOPTIMIZE
    return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB", flags=flags)


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether no colour of a lattice is changed by more than 1 of 255."""
    channels = np.meshgrid(*[LATTICE] * len(mode), indexing="ij")
    colours = np.stack(channels, -1).reshape(len(LATTICE), -1, len(mode))
    before = Image.fromarray(colours[..., 0] if mode == "L" else colours)
    after = np.asarray(transform.apply(before)).astype(np.int64)
    return bool(np.abs(after - colours).max() <= 1)


def _from_gamma(image: Image.Image, gamma: float, chromaticity: Any) -> Image.Image:
    """Converts an image of mode L or RGB whose value v in [0, 1] is light of v^(1/gamma).

    Args:
        image: to convert.
        gamma: near 1/2.2 for what is meant for displays; then the values are taken to be those of sRGB.
        chromaticity: x, y of white, red, green and blue; None for those of sRGB.
    """
    if not 0.05 < gamma < 20:
        return image
    light = (np.arange(256) / 255) ** (1 / gamma) if abs(2.2 * gamma - 1) > NEAR else _decoded(np.arange(256) / 255)
    matrix = _between_primaries(chromaticity) if image.mode == "RGB" and chromaticity else np.eye(3)
    if np.abs(matrix - np.eye(3)).max() > 0.01:
        seen = _encoded(np.clip(light[np.asarray(image)] @ matrix.T, 0, 1))
        return Image.fromarray(np.rint(255 * seen).astype(np.uint8))
    table = np.rint(255 * _encoded(light)).astype(int).tolist()
    return image.point(table * len(image.getbands()))


def _decoded(values: np.ndarray) -> np.ndarray:
    """The light of values of sRGB, both in [0, 1] (IEC 61966-2-1)."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _encoded(light: np.ndarray) -> np.ndarray:
    """The inverse of `_decoded`."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def _between_primaries(chromaticity: Any) -> np.ndarray:
    """The matrix (3, 3) from light of these primaries to that of sRGB's; the identity where they are none."""
    try:
        (white, there), (seen_white, here) = (_primaries(xy) for xy in (chromaticity, SRGB))
        adapted = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ seen_white) / (BRADFORD @ white)) @ BRADFORD
        matrix = np.linalg.inv(here) @ adapted @ there
    except (np.linalg.LinAlgError, ValueError):
        return np.eye(3)
    return matrix if np.isfinite(matrix).all() else np.eye(3)


def _primaries(chromaticity: Any) -> tuple[np.ndarray, np.ndarray]:
    """XYZ of white (3,), and the matrix (3, 3) from light of the primaries to XYZ. Raises ValueError, LinAlgError."""
    x, y = np.array(chromaticity, float).reshape(4, 2).T
    if not (y > 0).all():
        raise ValueError("a chromaticity without luminance")
    white, *columns = np.stack([x / y, np.ones(4), (1 - x - y) / y], 1)
    matrix = np.array(columns).T
    return white, matrix * np.linalg.solve(matrix, white)
