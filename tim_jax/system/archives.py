"""Zip archives and npz files from anywhere: what they claim is compared with the file before anything is unpacked."""

import lzma
import struct
import zipfile
import zlib
from typing import IO

# What reading a damaged or made-up archive raises, or the arrays in it.
DAMAGED = (
    OSError, EOFError, ValueError, LookupError, ArithmeticError, RuntimeError, MemoryError, TypeError, struct.error,
    zlib.error, lzma.LZMAError, zipfile.BadZipFile, zipfile.LargeZipFile,
)  # fmt: skip
MAX_RATIO = 64  # bytes unpacked for each of the file; statistics of images, the densest there is, take 20
SMALL = 2**26  # bytes unpacked that are nobody's harm
ENCRYPTED = 1  # a flag of an entry


def check(file: IO[bytes], stored: bool = False) -> None:
    """Checks that an archive holds about as much as its file. The file is left at its start.

    Args:
        file: A zip archive, open for reading.
        stored: Whether no entry may be compressed; then entries share no bytes either.

    Raises:
        ValueError: For an encrypted entry, a compression that is not allowed, or contents that are too large.
        zipfile.BadZipFile: For what is no archive.
    """
    length = file.seek(0, 2)
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    for entry in entries:
        if entry.flag_bits & ENCRYPTED:
            raise ValueError(f"{entry.filename} is encrypted")
        if entry.compress_type not in ((zipfile.ZIP_STORED,) if stored else (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)):
            raise ValueError(f"{entry.filename} is compressed in a way that is not read")
    total = sum(entry.file_size for entry in entries)
    if total > (length if stored else max(length * MAX_RATIO, SMALL)):
        raise ValueError(f"it claims to hold {total:,} bytes, and has {length:,}")
    file.seek(0)
