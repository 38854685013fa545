"""Tar shards and images that somebody has made up, or a disk has altered: bad records, and nothing that ends a run."""

import io
import logging
import struct
import tarfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image, features

from tests.helpers.tally import OTHER, REFUSED, TAKEN
from tim_jax import data
from tim_jax.data.bad_records import BadRecord
from tim_jax.data.decode import decode, header_size


def png():
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (1, 2, 3)).save(file, "PNG")
    return file.getvalue()


def entry(name, content=b"", size=None, kind=b"0"):
    """A header with its checksum, and what it stands before. size: 12 bytes, else that of the content."""
    header = bytearray(512)
    header[: len(name)] = name
    header[100:108], header[257:265], header[156:157] = b"0000644\0", b"ustar  \0", kind
    header[124:136] = size or b"%011o\0" % len(content)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content + bytes(-len(content) % 512)


def pax(**words):
    lines = b""
    for key, value in words.items():
        line = f" {key}={value}\n".encode()
        length = len(line) + 1
        while len(f"{length}") + len(line) != length:
            length += 1
        lines += f"{length}".encode() + line
    return entry(b"pax", lines, kind=b"x")


def outcome(read):
    """What becomes of an example: it is read, or it is a bad record; anything else is told, and fails the test."""
    try:
        read()
    except BadRecord:
        return REFUSED
    except Exception:
        logging.exception("it escaped")
        return OTHER
    return TAKEN


GOOD, END = entry(b"1.png", png()), bytes(1024)
TARS = {
    "a name that is not UTF-8": entry(b"\xff\xfe.png", png()),
    "a long name that is not UTF-8": entry(b"././@LongLink", b"\xff" * 300 + b".png\0", kind=b"L") + entry(b"x", png()),
    "chained long names": entry(b"././@LongLink", b"x" * 200, kind=b"L") * 3000,
    "chained headers of pax": pax(path="a.png") * 3000,
    "a long name of a tebibyte": entry(b"././@LongLink", b"x", b"\x80" + struct.pack(">QH", 2**40, 0)[:11], b"L"),
    "a size below 0": entry(b"2.png", png(), b"\xff" * 11 + b"\x00"),
    "a folder of a size below 0": entry(b"2", b"", b"\xff" * 10 + b"\xfe\x00", b"7"),
    "a size of 2**80": entry(b"2.png", png(), b"\x80" + b"\xff" * 11),
    "a size of 8 GiB": entry(b"2.png", png(), b"77777777777\0"),
    "no size": entry(b"2.png", png(), b"xxxxxxxxxxx\0"),
    "a size of pax below 0": pax(size=-1024) + entry(b"2.png", png()),
    "a size of pax of many digits": pax(size="9" * 5000) + entry(b"2.png", png()),
    "a size of pax that is none": pax(size="many") + entry(b"2.png", png()),
    "a time of pax that is none": pax(mtime="nan") + entry(b"2.png", png()),
    "a sparse map that is none": pax(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})
    + entry(b"2.png", b"x" * 512),
    "a map of old sparse files": entry(b"2.png", png(), kind=b"S"),
    "a link to itself": entry(b"2.png", kind=b"2"),
    "a way out": entry(b"../../../etc/2.png", png()),
    "noise": np.random.default_rng(0).bytes(5120),
}


@pytest.mark.parametrize("kind", TARS)
def test_a_shard_that_lies_has_its_good_images_and_bad_records(kind, tmp_path, tally):
    (tmp_path / "0.tar").write_bytes(GOOD + TARS[kind] + END)
    source = data.open_source("tar", str(tmp_path / "cache"), path=str(tmp_path / "0.tar"))
    assert source.identity(0) == "0.tar:1" and decode(source.raw(0).encoded, 3).size == (4, 4)
    found = Counter()
    for i in range(len(source)):
        source.identity(i).encode()
        found[outcome(lambda: decode(source.raw(i).encoded, 3))] += 1  # noqa: B023
    for each, count in found.items():
        tally("examples of shards that lie", each, count)
    assert not found[OTHER]
    with tarfile.open(tmp_path / "0.tar", "w"):  # as nothing holds the file
        pass


FORMATS = {"AVIF": "avif", "PNG": None, "JPEG": None, "WEBP": "webp", "GIF": None, "TIFF": None, "BMP": None}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about what it passes over
@pytest.mark.parametrize("kind", FORMATS)
def test_every_altered_bit_of_an_image_is_decoded_or_a_bad_record(kind, tally):
    if FORMATS[kind] and not features.check(FORMATS[kind]):
        pytest.skip(f"Pillow has no {kind} here")
    file, rng = io.BytesIO(), np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(file, kind)
    whole, found = file.getvalue(), Counter()
    places = (
        np.unique(np.linspace(0, len(whole) - 1, 200).astype(int)) if kind != "AVIF" else range(min(len(whole), 400))
    )
    for place in places:
        altered = bytearray(whole)
        altered[place] ^= 1 << int(rng.integers(8))
        for read in (lambda: decode(bytes(altered), 3), lambda: header_size(io.BytesIO(altered))):  # noqa: B023
            found[outcome(read)] += 1
    for each, count in found.items():
        tally("images with an altered bit", each, count)
    assert not found[OTHER]
