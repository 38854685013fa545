"""ICC profiles made by hand (ICC.1:2010), and what they mean by the formulas alone."""

import struct

import numpy as np

D50 = (0.9642, 1.0, 0.8249)
D65 = (0.3127, 0.3290)  # x, y
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
# x, y of red, green and blue.
REC709 = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
DISPLAY_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE_RGB = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))


def fixed(*values):
    """s15Fixed16 numbers."""
    return b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)


def profile(space, tags, device=b"mntr", connection=b"XYZ ", version=0x04300000):
    """The bytes of a profile."""
    table, body = b"", b""
    offset = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += b"\0" * (-len(content) % 4)
        table += name + struct.pack(">II", offset + len(body), len(content))
        body += content
    head = struct.pack(">I4sI", offset + len(body), b"\0" * 4, version) + device + space + connection
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 24 + struct.pack(">I", 0) + fixed(*D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def xyz(values):
    return b"XYZ " + b"\0" * 4 + fixed(*values)


def gamma_curve(gamma):
    return b"para" + b"\0" * 4 + struct.pack(">HH", 0, 0) + fixed(gamma)


def srgb_curve():
    return b"para" + b"\0" * 4 + struct.pack(">HH", 3, 0) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def to_xyz(primaries):
    """The matrix from linear RGB of these primaries, white at D65, to XYZ at D50 by the Bradford adaptation."""
    columns = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in primaries]).T
    white = np.array([D65[0] / D65[1], 1.0, (1 - D65[0] - D65[1]) / D65[1]])
    scaled = columns * np.linalg.solve(columns, white)
    gains = np.diag((BRADFORD @ np.array(D50)) / (BRADFORD @ white))
    return np.linalg.solve(BRADFORD, gains @ BRADFORD) @ scaled


def rgb_profile(primaries, curve, **more):
    """A profile of three primaries and one curve."""
    columns = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(xyz, to_xyz(primaries).T), strict=True))
    return profile(b"RGB ", columns | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve) | {b"wtpt": xyz(D50)}, **more)


def grey_profile(gamma):
    return profile(b"GRAY", {b"kTRC": gamma_curve(gamma), b"wtpt": xyz(D50)})


def cmyk_profile(corners):
    """A printer's profile whose colours lie linearly between the Lab values, in bytes (2, 2, 2, 2, 3), of its inks."""
    ramp = np.arange(256, dtype=np.uint8).tobytes()
    head = b"mft1" + b"\0" * 4 + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table = head + ramp * 4 + np.asarray(corners, np.uint8).tobytes() + ramp * 3
    return profile(b"CMYK", {b"A2B0": table, b"wtpt": xyz(D50)}, device=b"prtr", connection=b"Lab ", version=0x02400000)


def srgb_decoded(values):
    """Linear light of sRGB values in [0, 1]."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def srgb_of(at_d50):
    """sRGB values in [0, 255] of XYZ at D50, (..., 3); what lies outside is clipped."""
    linear = np.clip(at_d50 @ np.linalg.inv(to_xyz(REC709)).T, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def xyz_of_lab(lab):
    """XYZ at D50 of L, a, b (..., 3)."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
    return np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * D50
