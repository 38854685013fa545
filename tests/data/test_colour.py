"""Embedded profiles: what is decoded is what their formulas say, and what littleCMS says by itself."""

import io
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from tests.helpers import profiles
from tim_jax.data.decode import decode, pixels

RGB = np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)
SMOOTH = np.stack([*np.mgrid[0:160:4, 0:208:4], 200 - np.mgrid[0:160:4, 0:208:4][0]], -1).astype(np.uint8)
GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
P3 = profiles.rgb_profile(profiles.DISPLAY_P3, profiles.srgb_curve())
ADOBE = profiles.rgb_profile(profiles.ADOBE_RGB, profiles.gamma_curve(563 / 256))
SWAPPED = profiles.rgb_profile(profiles.REC709[::-1], profiles.srgb_curve())  # its first channel is blue
SRGB = profiles.rgb_profile(profiles.REC709, profiles.srgb_curve())
GREY_18 = profiles.grey_profile(1.8)


def saved(image, form, **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def shown(encoded, channels=3):
    return pixels(decode(encoded, channels)).astype(np.float64)


# What the pixels of each profile are in sRGB, by its formulas in numpy.
MEANT = {
    P3: lambda v: profiles.srgb_of(profiles.srgb_decoded(v / 255) @ profiles.to_xyz(profiles.DISPLAY_P3).T),
    ADOBE: lambda v: profiles.srgb_of((v / 255) ** (563 / 256) @ profiles.to_xyz(profiles.ADOBE_RGB).T),
    SWAPPED: lambda v: np.asarray(v)[..., ::-1],
    SRGB: lambda v: v,
}
NAMES = {P3: "display p3", ADOBE: "adobe rgb", SWAPPED: "swapped", SRGB: "srgb"}
FORMS = {
    "png": ("PNG", {}),
    "jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    "webp": ("WEBP", {"lossless": True}),
    "tiff": ("TIFF", {}),
    "avif": ("AVIF", {"quality": 95}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("profile", MEANT, ids=NAMES.get)
def test_colours_are_what_the_formulas_of_the_profile_say(profile, form):
    name, options = FORMS[form]
    stored = shown(saved(SMOOTH, name, **options))  # what a lossy format leaves
    found = shown(saved(SMOOTH, name, icc_profile=profile, **options))
    assert np.abs(found - MEANT[profile](stored)).max() <= (1.01 if profile is not SRGB else 0)


@pytest.mark.parametrize("profile", [P3, ADOBE, SWAPPED], ids=NAMES.get)
def test_colours_are_those_of_littlecms(profile):
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    expected = ImageCms.profileToProfile(Image.fromarray(RGB), opened, ImageCms.createProfile("sRGB"), outputMode="RGB")
    np.testing.assert_array_equal(shown(saved(RGB, "PNG", icc_profile=profile)), np.asarray(expected))
    assert np.abs(np.asarray(expected).astype(int) - RGB).max() > 15


def test_threads_share_a_profile():
    encoded = [saved(np.roll(RGB, i, 0), "PNG", icc_profile=ADOBE) for i in range(40)]
    expected = [shown(content) for content in encoded]
    with ThreadPoolExecutor(8) as pool:
        for found, right in zip(pool.map(shown, encoded), expected, strict=True):
            np.testing.assert_array_equal(found, right)


def test_transparency_and_palettes_keep_their_place():
    alpha = np.linspace(0, 255, RGB[..., 0].size).reshape(RGB.shape[:2]).astype(np.uint8)
    found = shown(saved(np.dstack([RGB, alpha]), "PNG", icc_profile=P3))
    share = alpha[..., None] / 255
    np.testing.assert_allclose(found, MEANT[P3](RGB) * share + 255 * (1 - share), atol=1.6)
    few = Image.fromarray(SMOOTH).quantize(16)
    found = shown(saved(few, "PNG", icc_profile=P3))
    np.testing.assert_allclose(found, MEANT[P3](np.asarray(few.convert("RGB"))), atol=1.01)


def test_an_image_with_a_profile_is_turned_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    found = shown(saved(SMOOTH, "PNG", icc_profile=SWAPPED, exif=exif))
    np.testing.assert_allclose(found, SMOOTH[::-1].swapaxes(0, 1)[..., ::-1], atol=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_goes_through_its_profile(channels):
    """Y = v^1.8, and the grey of that luminance in sRGB."""
    linear = (GREY / 255) ** 1.8
    expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    encoded = saved(GREY, "PNG", icc_profile=GREY_18)
    assert np.abs(shown(encoded, channels) - expected[..., None]).max() <= 1.5
    sixteen = saved(GREY.astype(np.uint16) * 257, "PNG", icc_profile=GREY_18)
    np.testing.assert_array_equal(shown(sixteen, channels), shown(encoded, channels))
    seen = np.dstack([GREY, np.full_like(GREY, 255)])
    np.testing.assert_array_equal(shown(saved(seen, "PNG", icc_profile=GREY_18), channels), shown(encoded, channels))


def test_cmyk_goes_through_its_profile():
    """The inks darken linearly in Lab, so that all ways to interpolate agree; all of them together are black."""
    darker, redder, yellower = np.array([80, 70, 25, 80]), np.array([-40, 50, -10, 0]), np.array([-25, -15, 40, 0])
    inks = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), -1)
    corners = np.stack([255 - inks @ darker, 128 + inks @ redder, 128 + inks @ yellower], -1)
    cmyk = np.random.default_rng(1).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    part = cmyk / 255
    lab = np.stack([(255 - part @ darker) / 2.55, part @ redder, part @ yellower], -1)
    expected = profiles.srgb_of(profiles.xyz_of_lab(lab))
    encoded = saved(Image.fromarray(cmyk, "CMYK"), "TIFF", icc_profile=profiles.cmyk_profile(corners))
    assert np.abs(shown(encoded) - expected).max() <= 1.01


def png_that_says(image, gamma=None, primaries=None, **more):
    """A PNG with its gamma and its primaries, white at D65."""
    about = PngInfo()
    if gamma is not None:
        about.add(b"gAMA", struct.pack(">I", round(gamma * 100_000)))
    if primaries is not None:
        values = np.array([profiles.D65, *primaries]).ravel()
        about.add(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in values)))
    return saved(image, "PNG", pnginfo=about, **more)


@pytest.mark.parametrize("gamma", [1.0, 1 / 1.8, 1 / 2.6])
@pytest.mark.parametrize("primaries", [None, profiles.DISPLAY_P3, profiles.ADOBE_RGB], ids=["srgb", "p3", "adobe"])
def test_gamma_and_primaries_mean_what_a_profile_of_them_means(gamma, primaries):
    """By littleCMS and by the formulas."""
    profile = profiles.rgb_profile(primaries or profiles.REC709, profiles.gamma_curve(1 / gamma))
    found = shown(png_that_says(SMOOTH, gamma, primaries))
    assert np.abs(found - shown(saved(SMOOTH, "PNG", icc_profile=profile))).max() <= 2
    meant = profiles.srgb_of((SMOOTH / 255) ** (1 / gamma) @ profiles.to_xyz(primaries or profiles.REC709).T)
    assert np.abs(found - meant).max() <= 1.01
    assert np.abs(found - SMOOTH).max() > 10


def test_grey_has_a_gamma_too():
    np.testing.assert_allclose(
        shown(png_that_says(GREY, 1 / 1.8)), shown(saved(GREY, "PNG", icc_profile=GREY_18)), atol=2
    )


@pytest.mark.parametrize(
    "encoded",
    [
        png_that_says(RGB, 1 / 2.2), png_that_says(RGB, 0.45455, profiles.REC709), png_that_says(RGB, 0.0),
        png_that_says(RGB, 1 / 2.2, ((0.3, 0.0), (0.3, 0.6), (0.1, 0.1))), png_that_says(RGB, 40_000.0),
        png_that_says(RGB, 1.0, profiles.DISPLAY_P3, icc_profile=SRGB), png_that_says(RGB, None, profiles.DISPLAY_P3),
        png_that_says(RGB, 1 / 2.2, ((0.3, 0.3), (0.3, 0.3), (0.3, 0.3))),
    ],
    ids=["display", "display, srgb", "zero", "no luminance", "huge", "beside a profile", "primaries", "singular"],
)  # fmt: skip
def test_gamma_of_displays_and_what_is_no_gamma_change_nothing(encoded):
    np.testing.assert_array_equal(shown(encoded), RGB)


# Profiles that say nothing of the image's own channels.
OF_NO_USE = {
    "of grey in an image in colour": GREY_18,
    "of ink in an image in colour": profiles.cmyk_profile(np.zeros((2, 2, 2, 2, 3))),
    "of a link between devices": profiles.rgb_profile(profiles.DISPLAY_P3, profiles.srgb_curve(), device=b"link"),
    "cut short": P3[:150],
    "of nothing": b"not a profile",
    "of zeros": bytes(500),
    "of a space without a name": P3[:16] + b"\xf1\xf2 \xff" + P3[20:],
    "without its curves": profiles.profile(b"RGB ", {b"wtpt": profiles.xyz(profiles.D50)}),
}


@pytest.mark.parametrize("name", OF_NO_USE)
def test_other_profiles_count_as_none(name):
    np.testing.assert_array_equal(shown(saved(RGB, "PNG", icc_profile=OF_NO_USE[name])), RGB)


def test_a_profile_in_colour_counts_as_none_for_grey():
    np.testing.assert_array_equal(shown(saved(GREY, "PNG", icc_profile=P3), 1)[..., 0], GREY)
