"""Labels and captions as often as the data has them, whatever source it lies in and in whatever order."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from tests.helpers.sources import CAPTIONS, IMAGES, LABELS, MADE, ROWS, encoded, open_made
from tim_jax import data
from tim_jax.data import annotations

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)


@given(counts=COUNTS, number=st.integers(0, 200))
def test_every_beginning_has_the_proportions(counts, number):
    """Tijdeman's bound, in exact fractions: no class is ever a whole time ahead or behind."""
    labels = data.proportional_labels(np.array(counts), number)
    assert labels.dtype == np.int32 and len(labels) == number
    seen = Counter()
    for k, label in enumerate(labels.tolist(), 1):
        seen[label] += 1
        for one, count in enumerate(counts):
            assert abs(seen[one] - Fraction(k * count, sum(counts))) < 1
            assert count or not seen[one]


@given(counts=COUNTS)
def test_as_many_labels_as_examples_are_those_of_the_examples(counts):
    for epochs in (1, 2):
        labels = data.proportional_labels(np.array(counts), epochs * sum(counts))
        np.testing.assert_array_equal(np.bincount(labels, minlength=len(counts)), epochs * np.array(counts))


def test_equal_counts_give_every_class_in_turn():
    labels = data.proportional_labels(np.array([7, 0, 7, 7, 7, 0]), 30)
    assert labels.tolist() == [[0, 2, 3, 4][i % 4] for i in range(30)]
    np.testing.assert_array_equal(data.proportional_labels(np.full(1000, 1300), 2500), np.arange(2500) % 1000)


def test_one_frequent_class_among_many_rare_ones_gets_no_more_than_its_share():
    """Divisor methods of apportionment would give it all twenty."""
    labels = data.proportional_labels(np.array([1000] + [4] * 1000), 20)
    assert 3 <= (labels == 0).sum() <= 5 and len(set(labels)) >= 16


@pytest.mark.parametrize("name", [name for name in MADE if name != "manifest"])
def test_labels_are_counted_without_an_image(name, tmp_path, embedded, monkeypatch):
    source = open_made(name, tmp_path, embedded)
    read = [source[i]["label"] for i in range(ROWS)]
    if name != "latents":  # which lie in one file with their label
        monkeypatch.setattr(type(source), "read", None)
    counts = data.label_counts(source, 3, tmp_path / "cache")
    np.testing.assert_array_equal(counts, np.bincount(LABELS, minlength=3))
    np.testing.assert_array_equal(source.labels(np.arange(ROWS)), read)
    monkeypatch.setattr(annotations, "_count", None)
    np.testing.assert_array_equal(data.label_counts(source, 3, tmp_path / "cache"), counts, "counted once")


def test_labels_of_the_digits_are_those_of_scikit_learn(embedded):
    whole = np.bincount(load_digits().target)
    for split, counts in (("train", whole - whole // 5), ("held_out", whole // 5)):
        source = data.open_source("digits", str(embedded), split)
        np.testing.assert_array_equal(data.label_counts(source, 10, embedded), counts)


def test_a_mixture_counts_by_its_weights(tmp_path):
    """Four examples of label 0, and twenty of both labels, three to one."""
    parts = []
    for part, labels in (("a", [0] * 4), ("b", [0, 1] * 10)):
        for i, label in enumerate(labels):
            path = tmp_path / part / f"class {label}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(IMAGES[0]))
        parts.append(data.open_source("folder", str(tmp_path / "cache"), path=str(tmp_path / part)))
    mixture = data.Mixture(tuple(parts), (3, 1))
    np.testing.assert_array_equal(mixture.labels(np.arange(24)), [0] * 4 + [0] * 10 + [1] * 10)
    counts = data.label_counts(mixture, 2, tmp_path / "cache")
    drawn = annotations.shuffled(mixture, 0, 24)
    assert (drawn < 4).sum() == 18, "three quarters of an epoch"
    np.testing.assert_array_equal(counts, [24 - (drawn >= 14).sum(), (drawn >= 14).sum()])


def test_a_part_counts_its_own(tmp_path, embedded):
    where, counts = MADE["folder"](tmp_path), []
    for split in ("train", "held_out"):
        part = data.open_source("folder", str(tmp_path / "cache"), split, held_out_share=0.4, **where)
        counts.append(data.label_counts(part, 2, tmp_path / "cache"))
        np.testing.assert_array_equal(
            counts[-1], np.bincount([part[i]["label"] for i in range(len(part))], minlength=2)
        )
    np.testing.assert_array_equal(sum(counts), np.bincount(LABELS))


def test_of_many_examples_that_must_be_read_some_are_counted(tmp_path, embedded, monkeypatch):
    monkeypatch.setattr(annotations, "MAX_READ", 200)
    source = data.open_source("digits", str(embedded))
    counts = data.label_counts(source, 10, tmp_path)
    assert counts.sum() == 200 and counts.min() > 5
    examples = annotations.shuffled(source, 0, len(source))
    assert sorted(examples.tolist()) == list(range(len(source))) and examples[:200].max() > 1000


def test_captions_come_from_all_of_a_source(tmp_path, embedded):
    """Not those of the first examples; of every example once an epoch, and not always its first one."""
    source = open_made("parquet", tmp_path, embedded)
    found = [data.caption_at(source, i) for i in range(10 * ROWS)]
    of = {text: i for i, texts in enumerate(CAPTIONS) for text in texts}
    for epoch in range(10):
        assert sorted(of[text] for text in found[epoch * ROWS : (epoch + 1) * ROWS]) == list(range(ROWS))
    assert [of[text] for text in found[:ROWS]] != list(range(ROWS))
    assert 40 < sum(text == CAPTIONS[of[text]][0] for text in found) < 80
    assert found[7] == data.caption_at(source, 7)


def test_a_caption_that_cannot_be_used_gives_way_to_the_next(tmp_path, embedded, monkeypatch):
    source = open_made("parquet", tmp_path, embedded)
    whole = type(source).annotations

    def some(self, i):
        if i != 5:
            raise data.BadRecord("caption")
        return whole(self, i)

    monkeypatch.setattr(type(source), "annotations", some)
    assert {data.caption_at(source, i) for i in range(ROWS)} <= set(CAPTIONS[5])
    monkeypatch.setattr(type(source), "annotations", lambda self, i: some(self, 0))
    with pytest.raises(ValueError, match="none of its examples can be used"):
        data.caption_at(source, 0)
