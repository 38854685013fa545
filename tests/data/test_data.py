"""The data room: what is in the embedded sources, and that batches are a function of (seed, step) alone."""

import dataclasses
import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tim_jax import data
from tim_jax.data.order import index_at
from tim_jax.data.sources.digits import Digits, split_indices
from tim_jax.data.sources.tfds import prepare
from tim_jax.system import int64

SPLITS = ("train", "held_out")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def train(directory):
    return data.open_source("digits", directory, "train")


@dataclasses.dataclass(frozen=True)
class Numbered(data.Source):
    """A made-up source whose pixels are all the number of the example modulo 256."""

    size: int
    name: str = "numbered"
    num_classes: int = 7
    image_shape: tuple = (2, 3, 1)

    def __len__(self):
        return self.size

    def read(self, i):
        return {"image": np.full(self.image_shape, i % 256, np.uint8), "label": i % self.num_classes, "index": i}

    def fingerprint(self):
        return str(self.size)


def identities(source, batch_size, steps, seed=0, **process):
    batches = data.global_batches(source, batch_size, seed, **process)
    return np.stack([batches[s]["index"] for s in steps])


# The digits.


def test_splits_are_disjoint_complete_and_balanced():
    labels = load_digits().target
    rows = split_indices(labels)
    assert sorted(rows["train"] + rows["held_out"]) == list(range(1797))
    total, held_out = np.bincount(labels), np.bincount(labels[rows["held_out"]])
    np.testing.assert_array_equal(held_out, total // 5)


@pytest.mark.parametrize("split", SPLITS)
def test_images_and_labels_are_those_of_sklearn(directory, split):
    source, digits = data.open_source("digits", directory, split), load_digits()
    rows = split_indices(digits.target)[split]
    assert (len(source), source.image_shape, source.num_classes) == (len(rows), (8, 8, 1), 10)
    images = np.stack([source[i]["image"] for i in range(len(source))])
    assert images.dtype == np.uint8
    error = np.abs(images[..., 0].astype(np.float64) - digits.images[rows] * 255 / 16)
    assert error.max() <= 0.5
    assert [source[i]["label"] for i in range(len(source))] == digits.target[rows].tolist()
    assert [source[i]["index"] for i in range(len(source))] == list(range(len(source)))


@pytest.mark.parametrize("split", SPLITS)
def test_arrays_hold_every_row_between_minus_one_and_one(directory, split):
    source = data.open_source("digits", directory, split)
    images, labels = data.load_arrays(source)
    assert (images.shape, images.dtype, labels.dtype) == ((len(source), 8, 8, 1), np.float32, np.int32)
    assert (images.min(), images.max()) == (-1, 1)
    raw = np.stack([source[i]["image"] for i in range(len(source))])
    np.testing.assert_array_equal(np.rint((images + 1) * 127.5), raw)
    np.testing.assert_array_equal(labels, [source[i]["label"] for i in range(len(source))])


def test_a_row_handed_out_cannot_change_the_source(train):
    train[0]["label"] = 99
    assert train[0]["label"] != 99


def test_written_once_and_opened_again_as_it_is(directory, train, tmp_path):
    def files():
        return {p: p.stat().st_mtime_ns for p in Path(directory).rglob("*") if p.is_file()}

    before = files()
    again = data.open_source("digits", directory, "train")
    assert files() == before and before
    assert any("array_record" in p.name for p in before)
    assert again.fingerprint() == train.fingerprint()
    assert data.open_source("digits", str(tmp_path), "train").fingerprint() == train.fingerprint()
    assert data.open_source("digits", directory, "held_out").fingerprint() != train.fingerprint()


def test_two_processes_may_write_at_once_and_no_tensorflow_is_imported(tmp_path, train):
    code = (
        "import sys; from tim_jax import data; assert 'tensorflow_datasets' not in sys.modules;"
        "s = data.open_source('digits', sys.argv[1], 'train'); s[0]; assert 'tensorflow' not in sys.modules;"
        "print(len(s), s.fingerprint())"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.split() == [str(len(train)), train.fingerprint()]
    assert [p.name for p in (tmp_path / "digits").iterdir() if "incomplete" in p.name] == []


def test_a_writer_that_comes_second_reads_what_the_first_wrote(tmp_path, monkeypatch):
    rows_of, first = Digits._split_generators, []

    def overtaken(builder, dl_manager):
        if not first:
            first.append("on its way")
            first.append(prepare(Digits, str(tmp_path)))
        return rows_of(builder, dl_manager)

    monkeypatch.setattr(Digits, "_split_generators", overtaken)
    assert prepare(Digits, str(tmp_path)) == first[1]
    assert [p.name for p in (tmp_path / "digits").iterdir() if "incomplete" in p.name] == []
    assert len(data.open_source("digits", str(tmp_path), "train")) == 1442


def test_a_source_travels_to_a_worker_without_its_rows(train):
    train[0]
    packed = pickle.dumps(train)
    assert len(packed) < 1000
    np.testing.assert_array_equal(pickle.loads(packed)[5]["image"], train[5]["image"])


# The order.


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 100, 1442])
@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_every_epoch_holds_every_row_once(size, seed):
    for epoch in (0, 1, 9):
        rows = index_at(epoch * size + np.arange(size), size, seed)
        assert sorted(rows.tolist()) == list(range(size))


def test_all_orders_of_four_rows_are_equally_likely():
    epochs = 24000
    orders = index_at(np.arange(4 * epochs), 4, 3).reshape(epochs, 4)
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    chi_square = np.sum((counts - epochs / 24) ** 2 / (epochs / 24))
    assert chi_square < 49.7  # the 99.9% point at 23 degrees of freedom


def test_epochs_and_neighbouring_seeds_are_uncorrelated():
    size = 1442
    orders = [index_at(epoch * size + np.arange(size), size, seed) for seed in range(3) for epoch in range(8)]
    correlation = np.corrcoef(orders + [np.arange(size)]) - np.eye(25)
    assert np.abs(correlation).max() < 5 / np.sqrt(size)


def test_an_order_of_a_trillion_rows_needs_no_memory():
    size = 10**12 + 39
    rows = index_at(np.arange(20000), size, 0)
    assert len(np.unique(rows)) == 20000
    assert rows.min() >= 0 and rows.max() < size
    assert abs(rows.mean() / size - 0.5) < 0.01


# The batches.


@pytest.mark.parametrize("process_count", [1, 2, 4, 8])
def test_the_global_batch_is_the_same_for_any_number_of_processes(train, process_count):
    steps = [0, 1, 7, 60, 61, 1000]
    whole = identities(train, 24, steps)
    parts = [identities(train, 24, steps, parts=(p,), count=process_count) for p in range(process_count)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize("start", [0, 1, 13, 59, 60, 61, 12345])
def test_resuming_at_any_step_gives_the_same_stream(train, start):
    batches = data.global_batches(train, 24, seed=3)
    for step, batch in enumerate(itertools.islice(data.iterate(batches, start), 4), start):
        for key, value in batches[step].items():
            np.testing.assert_array_equal(batch[key], value)


@pytest.mark.parametrize("threads, prefetch", [(0, 0), (1, 1), (4, 8)])
def test_reading_options_do_not_change_the_stream(threads, prefetch):
    source = Numbered(10)
    stream = data.iterate(data.global_batches(source, 4, 0), 2, threads=threads, prefetch=prefetch)
    seen = np.stack([batch["index"] for batch in itertools.islice(stream, 20)])
    np.testing.assert_array_equal(seen, identities(source, 4, range(2, 22)))


@pytest.mark.slow
def test_worker_processes_do_not_change_the_stream(train):
    stream = data.iterate(data.global_batches(train, 8, 0), 5, workers=2)
    seen = np.stack([batch["index"] for batch in itertools.islice(stream, 12)])
    np.testing.assert_array_equal(seen, identities(train, 8, range(5, 17)))


@pytest.mark.parametrize("size, batch_size", [(10, 4), (7, 16), (1, 3), (100, 32)])
def test_rows_left_over_at_an_epochs_end_go_to_the_next(size, batch_size):
    source = Numbered(size)
    line = identities(source, batch_size, range(40)).ravel()
    for end in range(batch_size, len(line), batch_size):
        seen = np.bincount(line[:end], minlength=size)
        assert seen.max() - seen.min() <= 1
    whole = line[: len(line) // size * size].reshape(-1, size)
    np.testing.assert_array_equal(np.sort(whole, axis=1), np.broadcast_to(np.arange(size), whole.shape))


def test_epochs_and_seeds_differ():
    source = Numbered(32)
    first, second = identities(source, 32, [0, 1])
    assert not np.array_equal(first, second)
    for seed in range(1, 5):
        orders = identities(source, 32, range(4), seed=seed)
        assert not any(np.array_equal(first, order) for order in orders)


def test_a_batch_holds_the_rows_that_it_names(train):
    batch = data.global_batches(train, 32, seed=1)[50]
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        "x": ((32, 8, 8, 1), np.float32),
        "label": ((32,), np.int32),
        "index": ((32,), np.int64),
        "bucket": ((2,), np.int32),
        "bad": ((0, 4), np.dtype("<U1")),
    }
    assert batch["bucket"].tolist() == [8, 8]
    images, labels = data.load_arrays(train)
    np.testing.assert_array_equal(batch["x"], images[batch["index"]])
    np.testing.assert_array_equal(batch["label"], labels[batch["index"]])


# Wrong input.


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda d: data.open_source("digit", d, "train"), "data.source is 'digit'; it must be one of .*'digits'"),
        (lambda d: data.open_source("xyz", d, "train"), "data.source is 'xyz'; it must be one of digits, .*nearest"),
        (lambda d: data.open_source("digits", d, "test"), "'test'.*train, held_out"),
        (lambda d: data.global_batches(Numbered(9), 6, 0, count=4), "batch_size is 6.*count, 4"),
        (lambda d: data.global_batches(Numbered(9), 0, 0), "batch_size is 0"),
        (lambda d: data.global_batches(Numbered(9), 4, -1), "seed is -1"),
        (lambda d: data.global_batches(Numbered(9), 4, 0, (0, 2), 2), "part is 2"),
        (
            lambda d: data.global_batches(Numbered(0), 4, 0),
            "data.source is numbered; it must have at least one example",
        ),
        (lambda d: data.iterate(data.global_batches(Numbered(9), 4, 0), -1), "start_step is -1"),
    ],
)
def test_wrong_input_is_refused_in_one_line(directory, wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        wrong(directory)
    assert "\n" not in str(error.value)


def test_whole_numbers_survive_devices_that_count_in_32_bits():
    numbers = np.array([0, 1, 2**31 - 1, 2**31, 2**40 + 12345, 2**62 - 1])
    halves = int64.to_halves(numbers)
    assert halves.dtype == np.int32 and halves.shape == (6, 2)
    np.testing.assert_array_equal(int64.from_halves(halves), numbers)
