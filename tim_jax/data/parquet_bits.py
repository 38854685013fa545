"""The encodings that Parquet files are made of: whole numbers of few bits, Thrift's structs, and snappy streams."""

from typing import Any

import numpy as np

SNAPPY_FRAGMENT = 2**16


class Unsupported(Exception):
    """What is stored in a way that is not read here."""


def hybrid(encoded: memoryview, width: int, count: int) -> np.ndarray:
    """Whole numbers (count,) of so many bits, in runs of one number and packed groups of eight."""
    found: list[np.ndarray] = []
    at = have = 0
    while have < count:
        header, at = varint(encoded, at)
        if header & 1:
            groups = header >> 1
            bits = np.unpackbits(np.frombuffer(encoded[at : at + groups * width], np.uint8), bitorder="little")
            found.append(bits.reshape(-1, width) @ (1 << np.arange(width)) if width else np.zeros(8 * groups, np.int64))
            at += groups * width
        else:
            size = -(-width // 8)
            found.append(np.full(header >> 1, int.from_bytes(encoded[at : at + size], "little")))
            at += size
        have += len(found[-1])
    return np.concatenate(found)[:count] if found else np.zeros(0, np.int64)


def varint_of(value: int) -> bytes:
    found = bytearray()
    while value >= 128:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def varint(encoded: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = encoded[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def struct(encoded: memoryview, at: int) -> tuple[dict[int, Any], int]:
    """A Thrift struct, {number of a field: its value}, and where it ends. Raises IndexError if it is cut short."""
    found: dict[int, Any] = {}
    field = 0
    while True:
        head = encoded[at]
        at += 1
        if head == 0:
            return found, at
        if head >> 4:
            field += head >> 4
        else:
            field, at = _signed(encoded, at)
        found[field], at = _value(head & 15, encoded, at)


def _signed(encoded: memoryview, at: int) -> tuple[int, int]:
    value, at = varint(encoded, at)
    return (value >> 1) ^ -(value & 1), at


def _value(kind: int, encoded: memoryview, at: int) -> tuple[Any, int]:
    """A value of one of Thrift's types, and where it ends."""
    if kind in (1, 2):
        return kind == 1, at
    if kind == 3:
        return encoded[at], at + 1
    if kind in (4, 5, 6):
        return _signed(encoded, at)
    if kind == 8:
        length, at = varint(encoded, at)
        if at + length > len(encoded):
            raise IndexError
        return bytes(encoded[at : at + length]), at + length
    if kind == 12:
        return struct(encoded, at)
    raise Unsupported(f"a header with a field of type {kind}")


def snappy_fragments(stored: memoryview, size: int) -> np.ndarray | None:
    """Where the parts of a snappy stream begin that can be decompressed without those before.

    The usual compressors look for repetitions within fragments of SNAPPY_FRAGMENT bytes alone
    (https://github.com/google/snappy/blob/main/format_description.txt).

    Args:
        stored: the stream.
        size: of what it holds.

    Returns:
        int64 (fragments + 1,), the last of them its end; None if a fragment needs one before it, or has so many
        repetitions that there is little to gain.
    """
    _, at = varint(stored, 0)
    found, done = [at], 0
    for _ in range(64 + size // 1024):
        if done == size:
            return np.array([*found, at], np.int64) if done > (len(found) - 1) * SNAPPY_FRAGMENT else None
        tag, start = stored[at], done
        if tag & 3 == 0:
            length, at = tag >> 2, at + 1
            if length >= 60:
                extra = length - 59
                length, at = int.from_bytes(stored[at : at + extra], "little"), at + extra
            done, at = done + length + 1, at + length + 1
        else:
            extra = (1, 2, 4)[(tag & 3) - 1]
            length = ((tag >> 2) & 7) + 4 if extra == 1 else (tag >> 2) + 1
            back = int.from_bytes(stored[at + 1 : at + 1 + extra], "little") + ((tag >> 5) << 8 if extra == 1 else 0)
            done, at = done + length, at + 1 + extra
            if start - back < (len(found) - 1) * SNAPPY_FRAGMENT:
                return None
        if done > len(found) * SNAPPY_FRAGMENT:
            return None
        if done == len(found) * SNAPPY_FRAGMENT and done < size:
            found.append(at)
    return None
