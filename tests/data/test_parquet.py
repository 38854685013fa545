"""Parquet by pages: the values that pyarrow reads, from files of every kind, and little else of the file."""

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tests.helpers.sources import encoded
from tim_jax import data
from tim_jax.data import parquet_bits, parquet_pages
from tim_jax.data.bad_records import BadRecord
from tim_jax.data.sources import parquet

ROWS = 120
STRUCT = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
CODECS = ("none", "snappy", "zstd", "gzip", "lz4", "brotli")


def made_up(nulls, repeated, seed=0):
    """Byte strings, a share of them missing, all different or of few kinds."""
    rng = np.random.default_rng(seed)
    values = [bytes([i % 7]) * (i % 7 * 3) if repeated else rng.bytes(int(rng.integers(400))) for i in range(ROWS)]
    return [None if missing else value for value, missing in zip(values, rng.random(ROWS) < nulls, strict=True)]


def column(values, form):
    """A column of bytes, of large bytes, or of structs as hubs write them, missing altogether or in their field."""
    if form != "struct":
        return pyarrow.array(values, pyarrow.binary() if form == "bytes" else pyarrow.large_binary())
    rows = [None if v is None and i % 2 else {"bytes": v, "path": f"{i}.png"} for i, v in enumerate(values)]
    return pyarrow.array(rows, STRUCT)


def read_by_pages(path):
    about, found = pyarrow.parquet.ParquetFile(path).metadata, []
    with path.open("rb") as file:
        for group in range(about.num_row_groups):
            column = parquet_pages.Column.find(file, parquet_pages.find_chunk(about, group, "image"))
            found += [column.value(file, row) for row in range(about.row_group(group).num_rows)]
    return found


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_pages_hold_what_was_written(codec, version, dictionary, tmp_path):
    path = tmp_path / "0.parquet"
    cases = [
        (0.3, False, None),
        (0.3, True, 1000),
        (0, False, 1000),
        (0, True, None),
        (1, False, None),
        (0.6, False, 1000),
    ]
    for (nulls, repeated, page_size), form in zip(cases, ("bytes", "struct", "large") * 2, strict=True):
        values = made_up(nulls, repeated)
        table = pyarrow.table({"label": list(range(ROWS)), "image": column(values, form)})
        how = {"compression": codec, "data_page_version": version, "use_dictionary": dictionary}
        pyarrow.parquet.write_table(
            table, path, row_group_size=50, data_page_size=page_size, dictionary_pagesize_limit=2000, **how
        )
        assert read_by_pages(path) == values


def write_images(path, images, **how):
    rows = [{"bytes": image, "path": None} for image in images]
    table = pyarrow.table({"image": pyarrow.array(rows, STRUCT), "label": [i % 3 for i in range(len(images))]})
    pyarrow.parquet.write_table(table, path, **how)


def open_rows(path, **more):
    return data.open_source("parquet", str(path / "cache"), path=str(path), num_classes=3, **more)


@pytest.fixture(scope="module")
def images():
    """PNGs of 8 to 12 kB each, which do not compress."""
    rng = np.random.default_rng(0)
    return [encoded(rng.integers(0, 256, (rng.integers(55, 64), 50, 3), dtype=np.uint8)) for _ in range(ROWS)]


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_other_encodings_are_read_whole(encoding, images, tmp_path, monkeypatch):
    write_images(tmp_path / "0.parquet", images, use_dictionary=False, column_encoding={"image.bytes": encoding})
    source = open_rows(tmp_path)
    monkeypatch.setattr(parquet, "ROWS_AT_ONCE", 50)  # the rows are in three parts
    assert [source.raw(i).encoded for i in range(ROWS)] == images
    with pytest.raises(parquet_pages.Unsupported):
        read_by_pages(tmp_path / "0.parquet")


@pytest.mark.parametrize("encoding", [None, "DELTA_BYTE_ARRAY"])
def test_structs_of_more_than_two_gibibytes_are_read(encoding, images, tmp_path, monkeypatch):
    """What pyarrow says of such a row group, whose limit is brought down to the rows that it reads at once."""
    how = {"use_dictionary": False, "column_encoding": {"image.bytes": encoding}} if encoding else {}
    write_images(tmp_path / "0.parquet", images, **how)
    whole = pyarrow.parquet.ParquetFile.read_row_group

    def limited(file, group, columns=None, **more):
        if columns is None or "image" in columns:
            raise pyarrow.ArrowNotImplementedError("Nested data conversions not implemented for chunked array outputs")
        return whole(file, group, columns, **more)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_group", limited)
    source = open_rows(tmp_path)
    assert [source.raw(i).encoded for i in range(ROWS)] == images
    assert [source[i]["label"] for i in range(6)] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    "how", [{}, {"use_dictionary": False}, {"compression": "none"}, {"write_batch_size": 8}], ids=str
)
def test_once_a_row_group_is_known_an_image_is_read_and_not_its_row_group(how, images, tmp_path, monkeypatch):
    images = [image + bytes([i % 256, i // 256]) for i, image in enumerate(images * 20)]  # all different
    write_images(tmp_path / "0.parquet", images, row_group_size=1000, **how)
    source, read, lengths = open_rows(tmp_path), parquet_pages._read, []
    monkeypatch.setattr(parquet_pages, "_read", lambda file, start, n: lengths.append(n) or read(file, start, n))
    assert [source.raw(i).encoded for i in range(0, 1000, 8)] == images[:1000:8]
    lengths.clear()
    assert [source.raw(i).encoded for i in (999, 4, 500)] == [images[i] for i in (999, 4, 500)]
    assert sum(lengths) < 0.1 * sum(map(len, images[:1000]))


@pytest.mark.parametrize("repeated", [0, 10, 3000])
@pytest.mark.parametrize("size", [1, 65536, 65537, 500_000])
def test_parts_of_a_snappy_stream_are_those_of_the_whole(size, repeated, tmp_path):
    rng = np.random.default_rng(size)
    whole = bytearray(rng.bytes(size))
    for at in rng.integers(0, size, repeated):
        whole[at : at + 200] = whole[:200]
    whole = bytes(whole[:size])
    stored = pyarrow.Codec("snappy").compress(whole).to_pybytes()
    fragments = parquet_bits.snappy_fragments(memoryview(stored), size)
    if fragments is None:
        assert repeated == 3000  # so many repetitions that the whole is kept
        return
    (tmp_path / "page").write_bytes(b"before" + stored)
    place = parquet_pages.Place(len(b"before"), size, fragments)
    with (tmp_path / "page").open("rb") as file:
        for start, stop in [(0, size), *np.sort(rng.integers(0, size + 1, (30, 2)), 1).tolist()]:
            if start < stop:
                assert place.read(file, start, stop) == whole[start:stop]


def test_a_stream_whose_parts_need_each_other_is_kept_whole():
    """One literal of 65,530 bytes, and a copy of 60 of them that runs over the end of the fragment."""
    literal = np.random.default_rng(0).bytes(65_530)
    head = bytes([0b1111_0100]) + (len(literal) - 1).to_bytes(2, "little")
    copy = bytes([(59 << 2) | 2]) + (60_000).to_bytes(2, "little")
    stored = parquet_bits.varint_of(65_590) + head + literal + copy
    assert pyarrow.Codec("snappy").decompress(stored, 65_590).to_pybytes()[:65_530] == literal
    assert parquet_bits.snappy_fragments(memoryview(stored), 65_590) is None


@pytest.mark.parametrize("how, warned", [({"compression": "zstd"}, True), ({"compression": "snappy"}, False),
                                         ({"compression": "zstd", "write_batch_size": 8}, False)], ids=str)  # fmt: skip
def test_files_that_are_slow_to_read_are_told(how, warned, images, tmp_path, caplog):
    write_images(
        tmp_path / "0.parquet", [image + bytes([i]) for i, image in enumerate(images)] * 9, use_dictionary=False, **how
    )
    open_rows(tmp_path)
    said = [record.getMessage() for record in caplog.records if record.name == "absl"]
    assert len(said) == warned
    assert all("9 MB" in line and "data.path" in line and "compression='none'" in line for line in said)


def test_what_was_read_last_is_kept_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(parquet, "MEMORY", 100)
    recent, read = parquet._Recent(), []

    def get(key, size=40):
        return recent.get(key, lambda: read.append(key) or np.full(size, ord(key), np.uint8))[0]

    assert [chr(get(key)) for key in "abacabd"] == list("abacabd")
    assert read == ["a", "b", "c", "b", "d"]
    assert get("x", 1000) == get("x", 1000) == ord("x") and read.count("x") == 1


@pytest.mark.parametrize("compression", ["zstd", "snappy"])
def test_a_damaged_page_is_bad_records_of_its_rows_alone(compression, images, tmp_path):
    path = tmp_path / "0.parquet"
    how = {"compression": compression, "use_dictionary": False, "data_page_size": 50_000, "write_batch_size": 1}
    write_images(path, images, row_group_size=60, **how)
    with path.open("rb") as file:
        chunk = parquet_pages.find_chunk(pyarrow.parquet.ParquetFile(path).metadata, 1, "image")
        column = parquet_pages.Column.find(file, chunk)
    page = column.pages[2]
    content = bytearray(path.read_bytes())
    content[page.start : page.start + page.stored] = b"\xff" * page.stored
    path.write_bytes(content)
    source, bad = open_rows(tmp_path), []
    for i in range(ROWS):
        try:
            assert source.raw(i).encoded == images[i]
        except BadRecord as error:
            assert error.reason == "shard"
            bad.append(i)
    assert bad == list(range(60 + page.first, 60 + page.first + page.count)) and 1 < len(bad) < 20
