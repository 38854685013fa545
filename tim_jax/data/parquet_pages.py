"""Single values of a column of byte strings in a Parquet file.

A row group may hold thousands of images, and libraries read it whole. Here a page is read, the unit of compression; and
of a large page that is not compressed, or by snappy, the value alone once it is known where it lies. The format is
https://github.com/apache/parquet-format: headers in Thrift's compact protocol, data pages of both versions, plain and
dictionary encoding. What is beyond that is `Unsupported`.
"""

import bisect
import dataclasses
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from tim_jax.data.parquet_bits import SNAPPY_FRAGMENT, Unsupported, hybrid, snappy_fragments, struct, varint_of

HEADER_BYTES = (2**10, 2**16, 2**22)  # that are read of a page for its header, more where these are too few
DICTIONARY_PAGE, DATA_PAGE, DATA_PAGE_V2 = 2, 0, 3
PLAIN, DICTIONARIES, RLE = 0, (2, 8), 3
ONE_BY_ONE = ("UNCOMPRESSED", "SNAPPY")  # codecs of which parts are read alone
LARGE = 2**20  # bytes of a page above which values are read one by one where they can
DAMAGE = (OSError, IndexError, KeyError, ValueError)  # what is raised for a column that is damaged


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A column of one row group.

    Attributes:
        start, stop: of its pages in the file, in bytes.
        codec: of compression, as pyarrow has it, or "UNCOMPRESSED".
        max_level: the definition level of a value that is there; lower ones are nulls.
    """

    start: int
    stop: int
    codec: str
    max_level: int


@dataclasses.dataclass(frozen=True)
class Page:
    """A page of a column.

    Attributes:
        kind: DICTIONARY_PAGE, DATA_PAGE or DATA_PAGE_V2.
        first, count: its first value in the column, and how many it has, nulls included.
        encoding: of its values.
        start, stored, size: where it begins after its header, its bytes there and after decompression.
        levels: bytes of definition levels at its beginning that are not compressed, in version 2.
        compressed: whether the rest is.
    """

    kind: int
    first: int
    count: int
    encoding: int
    start: int
    stored: int
    size: int
    levels: int = 0
    compressed: bool = True


def find_chunk(metadata: Any, group: int, name: str) -> Chunk:
    """Finds a column of byte strings, or its field `bytes` where it is a struct.

    Args:
        metadata: a pyarrow.parquet.FileMetaData.
        group: the number of the row group.
        name: of the column.

    Raises:
        Unsupported: there is no such column, or it holds something else.
    """
    for k in range(metadata.num_columns):
        about = metadata.schema.column(k)
        if about.path not in (name, f"{name}.bytes"):
            continue
        text = about.logical_type.type in ("STRING", "JSON", "ENUM")
        if about.physical_type != "BYTE_ARRAY" or about.max_repetition_level or text:
            break
        column = metadata.row_group(group).column(k)
        start = column.data_page_offset
        if column.dictionary_page_offset:  # None or 0 where there is none
            start = min(start, column.dictionary_page_offset)
        stop = start + column.total_compressed_size
        return Chunk(start, stop, column.compression, about.max_definition_level)
    raise Unsupported(f"no column {name} of bytes")


@dataclasses.dataclass(frozen=True)
class Strings:
    """Byte strings of a page.

    Attributes:
        start, stop: where each is in the page after decompression, int64 (n,).
        body: the page after decompression; empty where strings are read one by one.
        place: how they are read one by one.
    """

    start: np.ndarray
    stop: np.ndarray
    body: memoryview
    place: "Place | None" = None

    @classmethod
    def find(cls, body: memoryview, first: int, count: int, place: "Place | None") -> "Strings":
        """Finds so many strings from `first` on, each after its length."""
        start, stop, at = np.empty(count, np.int64), np.empty(count, np.int64), first
        for k in range(count):
            start[k] = at + 4
            at += 4 + int.from_bytes(body[at : at + 4], "little")
            stop[k] = at
        if at > len(body):
            raise ValueError("a page ends before its values do")
        return cls(start, stop, memoryview(b"") if place else body, place)

    def read(self, file: BinaryIO, k: int) -> bytes:
        """String k."""
        start, stop = int(self.start[k]), int(self.stop[k])
        return bytes(self.body[start:stop]) if self.place is None else self.place.read(file, start, stop)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where parts of a page can be read without the rest.

    Attributes:
        start: of the page in the file.
        size: of the page after decompression.
        fragments: where each SNAPPY_FRAGMENT of it starts and the last one ends, as it is stored; None where it is not
            compressed.
    """

    start: int
    size: int
    fragments: np.ndarray | None = None

    def read(self, file: BinaryIO, start: int, stop: int) -> bytes:
        """The bytes of the page from start to stop, after decompression."""
        import pyarrow

        if self.fragments is None:
            return _read(file, self.start + start, stop - start)
        first, last = start // SNAPPY_FRAGMENT, -(-stop // SNAPPY_FRAGMENT)
        begin, end = int(self.fragments[first]), int(self.fragments[last])
        stored = _read(file, self.start + begin, end - begin)
        offset = first * SNAPPY_FRAGMENT
        size = min(last * SNAPPY_FRAGMENT, self.size) - offset
        found = pyarrow.Codec("snappy").decompress(varint_of(size) + stored, size)
        return bytes(memoryview(found)[start - offset : stop - offset])


@dataclasses.dataclass(frozen=True)
class Values:
    """The values of a page of data.

    Attributes:
        there: (n,) whether each is no null.
        strings: those that are no nulls.
        numbers: in place of these, their places in the dictionary.
    """

    there: np.ndarray
    strings: Strings | None
    numbers: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Column:
    """The pages of a column of one row group.

    Attributes:
        chunk: where they are.
        pages: of data, in order.
        dictionary: the page of the values that pages of numbers mean, if there is one.
    """

    chunk: Chunk
    pages: tuple[Page, ...]
    dictionary: Page | None

    @classmethod
    def find(cls, file: BinaryIO, chunk: Chunk) -> "Column":
        """Reads the headers of all pages. Raises Unsupported, or one of DAMAGE."""
        pages: list[Page] = []
        dictionary = None
        at, first = chunk.start, 0
        while at < chunk.stop:
            header, length = _read_header(file, at)
            page = _page(header, first, at + length)
            at = page.start + page.stored
            if page.kind == DICTIONARY_PAGE:
                dictionary = page
                continue
            first += page.count
            pages.append(page)
        return cls(chunk, tuple(pages), dictionary)

    def locate(self, row: int) -> tuple[int, int]:
        """(number of its page, number in that page) of a value."""
        page = bisect.bisect_right(self.pages, row, key=lambda page: page.first) - 1
        return page, row - self.pages[page].first

    def value(
        self, file: BinaryIO, row: int, remembered: Callable[[Any, Callable[[], Any]], Any] = lambda key, find: find()
    ) -> bytes | None:
        """A value, None for a null.

        Args:
            file: that holds the column.
            row: which one.
            remembered: (key, how it is found) -> what was found for this key before, or now.

        Raises:
            Unsupported: it is stored in a way that is not read here.
            OSError, IndexError, KeyError, ValueError: the column is damaged.
        """
        page, k = self.locate(row)
        values = remembered(page, lambda: self.values(file, page))
        if not values.there[k]:
            return None
        k = int(values.there[:k].sum())
        if values.strings is not None:
            return values.strings.read(file, k)
        return remembered("dictionary", lambda: self.meanings(file)).read(file, int(values.numbers[k]))

    def values(self, file: BinaryIO, page: int) -> Values:
        """Finds the values of a page. Raises Unsupported, or one of DAMAGE."""
        about = self.pages[page]
        body, place = _body(file, self.chunk, about)
        levels, first = _levels(body, self.chunk, about)
        there = np.ones(about.count, bool) if levels is None else levels == self.chunk.max_level
        count = int(there.sum())
        if about.encoding == PLAIN:
            return Values(there, Strings.find(body, first, count, place), None)
        if about.encoding in DICTIONARIES and self.dictionary is not None:
            return Values(there, None, hybrid(body[first + 1 :], body[first], count) if count else None)
        raise Unsupported(f"encoding {about.encoding}")

    def meanings(self, file: BinaryIO) -> Strings:
        """The values of the dictionary. Raises one of DAMAGE."""
        assert self.dictionary is not None, "pages of numbers have a dictionary"
        body, place = _body(file, self.chunk, self.dictionary)
        return Strings.find(body, 0, self.dictionary.count, place)


def _read(file: BinaryIO, start: int, length: int) -> bytes:
    file.seek(start)
    found = file.read(length)
    if len(found) < length:
        raise OSError("the file ends before this page does")
    return found


def _body(file: BinaryIO, chunk: Chunk, page: Page) -> tuple[memoryview, Place | None]:
    """A page after decompression, levels included, and where parts of it are if it is large."""
    import pyarrow

    stored = memoryview(_read(file, page.start, page.stored))
    large = page.size >= LARGE
    if chunk.codec == "UNCOMPRESSED" or not page.compressed:
        return stored, Place(page.start, len(stored)) if large else None
    codec = "lz4_raw" if chunk.codec == "LZ4" else chunk.codec.lower()
    size = page.size - page.levels
    body = memoryview(pyarrow.Codec(codec).decompress(stored[page.levels :], size)).cast("B")
    if page.levels:  # the levels of version 2 are not compressed
        return memoryview(bytes(stored[: page.levels]) + bytes(body)), None
    fragments = snappy_fragments(stored, size) if large and codec == "snappy" else None
    return body, None if fragments is None else Place(page.start, size, fragments)


def _levels(body: memoryview, chunk: Chunk, page: Page) -> tuple[np.ndarray | None, int]:
    """The definition levels of a page, None where it has none, and where they end."""
    width = chunk.max_level.bit_length()
    if page.kind == DATA_PAGE_V2:
        return hybrid(body[: page.levels], width, page.count) if width else None, page.levels
    if not width:
        return None, 0
    length = int.from_bytes(body[:4], "little")
    return hybrid(body[4 : 4 + length], width, page.count), 4 + length


def _page(header: dict[int, Any], first: int, start: int) -> Page:
    """The page of a header (fields by number). Raises Unsupported."""
    kind, size, stored = header.get(1, DATA_PAGE), header[2], header[3]
    if kind == DATA_PAGE:
        about = header[5]
        if about.get(3, RLE) != RLE:
            raise Unsupported(f"levels of encoding {about[3]}")
        return Page(kind, first, about[1], about.get(2, PLAIN), start, stored, size)
    if kind == DATA_PAGE_V2:
        about = header[8]
        levels, compressed = about.get(5, 0) + about.get(6, 0), about.get(7, True)
        return Page(kind, first, about[1], about.get(4, PLAIN), start, stored, size, levels, compressed)
    if kind == DICTIONARY_PAGE:
        return Page(kind, first, header[7][1], PLAIN, start, stored, size)
    raise Unsupported(f"page of type {kind}")


def _read_header(file: BinaryIO, at: int) -> tuple[dict[int, Any], int]:
    """The fields of the page header at a place of a file, and its bytes."""
    for length in HEADER_BYTES:
        file.seek(at)
        encoded = memoryview(file.read(length))
        try:
            return struct(encoded, 0)
        except IndexError:  # it is longer
            continue
    raise OSError("a page has no header")
