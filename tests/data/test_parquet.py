"""Parquet files: row groups of any size, what stays in memory, what is slow, what is damaged."""

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tests.helpers.sources import encoded
from tim_jax import data
from tim_jax.data.bad_records import BadRecord
from tim_jax.data.sources import parquet

ROWS = 120
STRUCT = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


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


def test_structs_of_more_than_two_gibibytes_are_read(images, tmp_path, monkeypatch):
    """What pyarrow says of such a row group, whose limit is brought down to the rows that are read at once."""
    write_images(tmp_path / "0.parquet", images)
    whole, batches = pyarrow.parquet.ParquetFile.read_row_group, pyarrow.parquet.ParquetFile.iter_batches

    def limited(file, group, columns=None, **more):
        if columns is None or "image" in columns:
            raise pyarrow.ArrowNotImplementedError("Nested data conversions not implemented for chunked array outputs")
        return whole(file, group, columns, **more)

    def uneven(file, size, *arguments, **more):
        assert size <= parquet.ROWS_AT_ONCE
        return batches(file, size - 7, *arguments, **more)  # a batch may have fewer rows than were asked for

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_group", limited)
    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", uneven)
    source = open_rows(tmp_path)
    assert [source.raw(i).encoded for i in range(ROWS)] == images
    assert [source[i]["label"] for i in range(6)] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("rows, memory, warned", [(ROWS, 2**16, True), (16, 2**16, False), (ROWS, 2**30, False)])
def test_row_groups_that_are_slow_to_read_are_told(rows, memory, warned, images, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(parquet, "MEMORY", memory)
    monkeypatch.setattr(parquet, "LARGE", 500_000)  # sixteen images have less, all of them more
    write_images(tmp_path / "0.parquet", images, row_group_size=rows, use_dictionary=False)
    open_rows(tmp_path)
    said = [record.getMessage() for record in caplog.records if record.name == "absl"]
    assert len(said) == warned
    assert all("up to 1 MB" in line and line.startswith("data.path is") for line in said)


def test_what_was_read_last_is_kept_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(parquet, "MEMORY", 100)
    recent, read = parquet._Recent(), []

    def get(number, size=40):
        batches = [pyarrow.record_batch({"x": np.full(size, number, np.uint8)})]
        return recent.get(number, lambda: read.append(number) or batches)[0]["x"][0].as_py()

    wanted = [0, 1, 0, 2, 0, 1, 3]
    assert [get(number) for number in wanted] == wanted
    assert read == [0, 1, 2, 1, 3]
    assert get(9, 1000) == get(9, 1000) == 9 and read.count(9) == 1


def test_a_damaged_row_group_is_bad_records_of_its_rows_alone(images, tmp_path):
    path = tmp_path / "0.parquet"
    write_images(path, images, row_group_size=60, use_dictionary=False, compression="zstd")
    column = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    content[middle : middle + 1000] = b"\xff" * 1000
    path.write_bytes(content)
    source, bad = open_rows(tmp_path), []
    for i in range(ROWS):
        try:
            assert source.raw(i).encoded == images[i]
        except BadRecord as error:
            assert error.reason == "shard"
            bad.append(i)
    assert bad == list(range(60, ROWS))
