"""Decodes image files of all kinds to uint8 RGB or greyscale, as a viewer shows them, and refuses what is ambiguous.

Images are turned as their EXIF tag says. Transparency is laid over white. Of an animation the first frame is taken.
Sixteen bits are rounded to eight. Colours go through the embedded profile where there is one (colour.py).
"""

import contextlib
import io
import struct
import zlib
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tim_jax.data import colour
from tim_jax.data.bad_records import BadRecord

MAX_PIXELS = 2**26
# Formats of pixels only: Pillow would hand others, such as PostScript, to programs that run them.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
# What names of files in these formats end in, as Pillow has it.
ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".pbm", ".pgm", ".ppm",
    ".pnm", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".avif", ".avifs",
)  # fmt: skip
ORIENTATION = 0x0112
TRANSPOSED = (5, 6, 7, 8)
# Pillow turns these by itself.
TURNED_BY_PILLOW = ("TIFF",)
# What a mode is converted to before its colours are, without transparency.
PLAIN = dict.fromkeys(("1", "L", "LA", "La"), "L") | {"CMYK": "CMYK"}
PLAIN |= dict.fromkeys(("RGB", "P", "PA", "RGBA", "RGBa", "RGBX", "YCbCr", "HSV"), "RGB")
TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
# What Pillow's readers raise besides OSError for files that are damaged inside.
RAISED_FOR_DAMAGE = (
    SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, MemoryError, AttributeError,
    struct.error, zlib.error,
)  # fmt: skip


@contextlib.contextmanager
def _refusals():
    """Turns what Pillow raises for a damaged file into a BadRecord."""
    try:
        yield
    except BadRecord:
        raise
    except UnidentifiedImageError:
        raise BadRecord("unreadable", "no known image format") from None
    except Image.DecompressionBombError as error:
        raise BadRecord("too many pixels", str(error)) from None
    except (OSError, EOFError) as error:
        reason = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise BadRecord(reason, str(error)) from None
    except RAISED_FOR_DAMAGE as error:
        raise BadRecord("unreadable", f"{type(error).__name__}: {error}") from None


def _open(file: BinaryIO) -> Image.Image:
    image = Image.open(file, formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadRecord("too many pixels", f"{height}x{width} pixels, above {MAX_PIXELS}")
    return image


def _orientation(image: Image.Image) -> int:
    if image.format in TURNED_BY_PILLOW:
        return 1
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # asking Pillow would read all pixels
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except (*RAISED_FOR_DAMAGE, OSError, EOFError):
        return 1  # viewers show a picture whose EXIF data is damaged
    return found if found in range(1, 9) else 1


def header_size(file: BinaryIO) -> tuple[int, int]:
    """The (height, width) of an encoded image as it is shown, from its header alone. Raises BadRecord."""
    with _refusals():
        image = _open(file)
        width, height = image.size
        return (width, height) if _orientation(image) in TRANSPOSED else (height, width)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Rounds greyscale of 16 bits, or of 32 that hold 16, to 8."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise BadRecord("mode", f"whole numbers from {values.min()} to {values.max()}")
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))


def _to_grey_or_rgb(image: Image.Image) -> Image.Image:
    """Converts an image to mode L or RGB, in sRGB. Raises BadRecord."""
    if image.mode == "LAB":
        return colour.from_lab(image)
    if image.mode.startswith("I"):
        return colour.to_srgb(_to_eight_bits(image), image.info)
    if image.mode not in PLAIN:
        raise BadRecord("mode", image.mode)
    plain = PLAIN[image.mode]
    if image.mode not in TRANSPARENT and "transparency" not in image.info:
        return colour.to_srgb(image if image.mode == plain else image.convert(plain), image.info)
    with_alpha = image.convert({"L": "LA", "RGB": "RGBA"}[plain])
    shown = colour.to_srgb(with_alpha.convert(plain), image.info).convert("RGB")
    shown.putalpha(with_alpha.getchannel("A"))
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), shown).convert("RGB")


def decode(encoded: bytes, channels: int) -> Image.Image:
    """Decodes an image file.

    Args:
        encoded: its bytes.
        channels: 1 for mode L (ITU-R 601 luma), 3 for RGB.

    Raises:
        BadRecord: it is no image, is damaged or too large, or its pixels have no right conversion.
    """
    if not encoded:
        raise BadRecord("empty")
    with _refusals(), _open(io.BytesIO(encoded)) as image:
        orientation = _orientation(image)
        image.load()
        plain = _to_grey_or_rgb(image)
        if orientation != 1:
            plain.getexif()[ORIENTATION] = orientation
            plain = ImageOps.exif_transpose(plain)
        mode = "L" if channels == 1 else "RGB"
        return plain if plain.mode == mode else plain.convert(mode)


def pixels(image: Image.Image) -> np.ndarray:
    """The pixels, uint8 (h, w, c), of an image in mode L or RGB."""
    return np.atleast_3d(np.asarray(image))
