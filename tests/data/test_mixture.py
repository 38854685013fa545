"""Mixtures of sources: each row of a source as often as its weight says."""

import numpy as np
import pytest

from tests.helpers.sources import LABELS, ROWS, make_folder, make_parquet
from tim_jax import data
from tim_jax.data.sizes import read_sizes


def test_a_mixture_draws_by_weight_and_each_row_of_a_source_alike(tmp_path):
    roots = [tmp_path / "a", tmp_path / "b"]
    sources = []
    for root in roots:
        root.mkdir()
        sources.append(data.open_source("parquet", str(root), **make_parquet(root)))
    mixture = data.Mixture(tuple(sources), (3.0, 1.0))
    assert len(mixture) == 2 * ROWS
    assert [mixture[i]["label"] for i in range(2 * ROWS)] == LABELS * 2
    assert len({mixture.identity(i) for i in range(2 * ROWS)}) == 2 * ROWS
    how = data.Bucketing(area=144, batch_size=2, max_buckets=2, fitting=data.Fitting(max_cropped=0.9))
    plan = data.make_plan(mixture, read_sizes(mixture, tmp_path), how, tmp_path)
    assert len(plan.buckets) == 2 and plan.images() == 2 * ROWS
    order, seen = data.Order(plan, 0), np.zeros(2 * ROWS, int)
    epochs = 40
    for step in range(round(epochs * order.steps_per_epoch)):
        bucket, first = order.bucket(step)
        seen += np.bincount(order.indices(bucket, first + np.arange(2)), minlength=2 * ROWS)
    # An epoch is 24 rows: 18 of the first source, so 1.5 passes, and 6 of the other, so half a pass.
    assert abs(seen[:ROWS] - 1.5 * epochs).max() <= 2 and abs(seen[ROWS:] - 0.5 * epochs).max() <= 2


def test_no_source_keeps_to_some_slots_of_the_batch(tmp_path):
    """Two sources of one weight take turns; times are assigned to every other slot, and each source must have both."""
    roots = [tmp_path / "a", tmp_path / "b"]
    sources = []
    for root in roots:
        root.mkdir()
        sources.append(data.open_source("parquet", str(root), **make_parquet(root)))
    how = data.Bucketing(area=144, batch_size=4, max_buckets=1, fitting=data.Fitting(max_cropped=0.9))
    mixture = data.Mixture(tuple(sources), (1.0, 1.0))
    order = data.Order(data.make_plan(mixture, read_sizes(mixture, tmp_path), how, tmp_path), 0)
    slots, steps = np.arange(4), 400
    rows = np.stack([order.indices(*order.positions(step, slots)) for step in range(steps)])
    first = (rows < ROWS).mean(axis=0)
    assert (abs(first - 0.5) < 5 * 0.5 / np.sqrt(steps)).all(), "as of a fair coin, within five deviations"
    for step in range(20):
        bucket, start = order.bucket(step)
        assert sorted(rows[step]) == sorted(order.indices(bucket, start + slots)), "the same examples in each batch"


@pytest.mark.parametrize("weights, message", [((1.0,), "weight for each"), ((1.0, 0.0), "must be above 0")])
def test_a_wrong_mixture_is_refused(weights, message, tmp_path):
    source = data.open_source("folder", str(tmp_path / "cache"), **make_folder(tmp_path))
    with pytest.raises(ValueError, match=message):
        data.Mixture((source, source), weights)
