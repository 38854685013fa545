"""Colours as a viewer shows them: pixels of an embedded ICC profile as sRGB, by littleCMS.

A profile is used where it describes a device with the channels that the image has; others, and damaged ones, count as
none. Most embedded profiles are sRGB itself: an image keeps its values where its profile changes no colour by more than
the rounding to eight bits does.
"""

import functools
import io

import numpy as np
from PIL import Image, ImageCms

DEVICES = ("mntr", "scnr", "prtr", "spac")
SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # of a profile, for each mode
LATTICE = np.linspace(0, 255, 16).round().astype(np.uint8)  # 16 is what makes steps of 17 whole


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Converts an image of mode L, RGB or CMYK to L or RGB by the profile that its file brought, if any."""
    transform = _transform(profile, image.mode) if isinstance(profile, bytes) else None
    if transform is None:
        return image if image.mode != "CMYK" else image.convert("RGB")
    converted = transform.apply(image)
    return converted.convert("L") if image.mode == "L" else converted


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
